// SPDX-License-Identifier: Apache-2.0
//
// Key files: private, complete, never replaced; what is wrong with them is said with the command to type.
#include "daemon/transport/keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/daemon/transport_testing.h"

namespace holdfast {
namespace {

using ::testing::HasSubstr;

mode_t ModeOf(const std::string& path) {
  struct stat st {};
  EXPECT_EQ(::stat(path.c_str(), &st), 0) << path;
  return st.st_mode & 0777;
}

std::string Slurp(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(Keys, AreMadePrivateAndReadBack) {
  TempDir tmp;
  const std::string dir = tmp.path() + "/root/keys";
  const mode_t before = ::umask(0);  // permissions do not come from the umask
  const Status made = MakeKeys(dir, "n1");
  ::umask(before);
  ASSERT_TRUE(made.ok()) << made.error().message;
  EXPECT_EQ(ModeOf(dir), 0700u);
  EXPECT_EQ(ModeOf(dir + "/n1.secret"), 0600u);
  const auto keys = ReadKeys(dir, "n1");
  ASSERT_TRUE(keys.ok() && keys->has_value());
  EXPECT_EQ((*keys)->secret_key.size(), 40u);
  EXPECT_EQ(Slurp(dir + "/n1.public"), (*keys)->public_key + "\n");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 2);  // nothing temporary is left
  const auto allowed = AllowedKeys(dir);
  ASSERT_TRUE(allowed.ok());
  EXPECT_EQ(*allowed, (std::map<std::string, std::string>{{(*keys)->public_key, "n1"}}));
}

TEST(Keys, AreNeverReplaced) {
  TempDir tmp;
  const std::string dir = tmp.path() + "/keys";
  ASSERT_TRUE(MakeKeys(dir, "n1").ok());
  const std::string first = Slurp(dir + "/n1.secret");
  ASSERT_TRUE(MakeKeys(dir, "n1").ok());
  EXPECT_EQ(Slurp(dir + "/n1.secret"), first);
}

TEST(Keys, TwinsAgreeOnOnePair) {
  TempDir tmp;
  const std::string dir = tmp.path() + "/keys";
  for (const char* name : {"a", "b", "c", "d", "e", "f", "g", "h"}) {
    std::vector<std::thread> twins;
    for (int i = 0; i < 4; ++i) twins.emplace_back([&] { EXPECT_TRUE(MakeKeys(dir, name).ok()); });
    for (std::thread& t : twins) t.join();
    EXPECT_TRUE(ReadKeys(dir, name).ok());
  }
}

TEST(Keys, ADeathBetweenTheFilesIsMended) {
  TempDir tmp;
  const std::string dir = tmp.path() + "/keys";
  ASSERT_TRUE(MakeKeys(dir, "n1").ok());
  const std::string secret = Slurp(dir + "/n1.secret"), public_key = Slurp(dir + "/n1.public");
  std::filesystem::remove(dir + "/n1.public");
  EXPECT_EQ(ReadKeys(dir, "n1").code(), ErrorCode::kNotFound);
  ASSERT_TRUE(MakeKeys(dir, "n1").ok());
  EXPECT_EQ(Slurp(dir + "/n1.secret"), secret);
  EXPECT_EQ(Slurp(dir + "/n1.public"), public_key);
}

TEST(Keys, NoDirectoryIsNoKeysAndNoPairIsAnError) {
  TempDir tmp;
  const auto none = ReadKeys(tmp.path() + "/keys", "n1");
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
  ASSERT_TRUE(MakeKeys(tmp.path() + "/keys", "n1").ok());
  const auto other = ReadKeys(tmp.path() + "/keys", "n2");
  EXPECT_EQ(other.code(), ErrorCode::kNotFound);
  EXPECT_THAT(other.error().message, HasSubstr("jobctl --root " + tmp.path() + " keygen"));
}

TEST(Keys, WhatOthersCanReadIsRefusedWithTheChmod) {
  TempDir tmp;
  const std::string dir = tmp.path() + "/keys";
  ASSERT_TRUE(MakeKeys(dir, "n1").ok());
  ASSERT_EQ(::chmod((dir + "/n1.secret").c_str(), 0640), 0);
  EXPECT_EQ(ReadKeys(dir, "n1").code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(ReadKeys(dir, "n1").error().message, HasSubstr("chmod 600 " + dir + "/n1.secret"));
  EXPECT_THAT(MakeKeys(dir, "n1").error().message, HasSubstr("chmod 600"));
  ASSERT_EQ(::chmod((dir + "/n1.secret").c_str(), 0600), 0);
  ASSERT_EQ(::chmod(dir.c_str(), 0750), 0);
  EXPECT_THAT(ReadKeys(dir, "n1").error().message, HasSubstr("chmod 700 " + dir));
  EXPECT_THAT(MakeKeys(dir, "n2").error().message, HasSubstr("chmod 700 " + dir));
  EXPECT_THAT(AllowedKeys(dir).error().message, HasSubstr("chmod 700 " + dir));
}

TEST(Keys, BrokenFilesAllowNobodyAndHideNobody) {
  TempDir tmp;
  const std::string dir = tmp.path() + "/keys";
  for (const char* name : {"n1", "n2", "n3"}) ASSERT_TRUE(MakeKeys(dir, name).ok());
  std::ofstream(dir + "/n1.public") << "";
  std::ofstream(dir + "/n2.public") << std::string(40, '\x01') << "\n";
  std::ofstream(dir + "/x.public") << std::string(1 << 20, 'a');
  const auto allowed = AllowedKeys(dir);
  ASSERT_TRUE(allowed.ok());
  ASSERT_EQ(allowed->size(), 1u);
  EXPECT_EQ(allowed->begin()->second, "n3");
  EXPECT_EQ(ReadKeys(dir, "n1").code(), ErrorCode::kCorrupt);
  EXPECT_EQ(AllowedKeys(tmp.path() + "/nowhere").code(), ErrorCode::kNotFound);
}

TEST(Keys, FilesThatAreNoPairAndNamesThatAreNoneAreRefused) {
  TempDir tmp;
  const std::string dir = tmp.path() + "/keys";
  ASSERT_TRUE(MakeKeys(dir, "n1").ok());
  ASSERT_TRUE(MakeKeys(dir, "n2").ok());
  std::filesystem::copy_file(dir + "/n2.public", dir + "/n1.public", std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(ReadKeys(dir, "n1").error().message, HasSubstr("not the public key of"));
  EXPECT_FALSE(MakeKeys(dir, "n1").ok());
  std::filesystem::remove(dir + "/n2.secret");
  EXPECT_THAT(MakeKeys(dir, "n2").error().message, HasSubstr("without its secret"));
  for (const char* name : {"", "../n1", "a/b", ".hidden", "a b"}) {
    EXPECT_EQ(MakeKeys(dir, name).code(), ErrorCode::kInvalidArgument) << name;
    EXPECT_EQ(ReadKeys(dir, name).code(), ErrorCode::kInvalidArgument) << name;
  }
}

}  // namespace
}  // namespace holdfast
