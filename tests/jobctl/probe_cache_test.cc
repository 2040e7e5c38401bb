// SPDX-License-Identifier: Apache-2.0
//
// The cache of what was measured: found again, and never believed where it is damaged, another's, or of another question.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobctl/disk_probe.h"
#include "jobctl/probe_cache.h"

namespace holdfast {
namespace {

class ProbeCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/holdfast-probe-cache-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    dir_ = name;
  }
  void TearDown() override { (void)fs_.RemoveTree(dir_); }
  ProbeCache Cache(const MachineName& machine = {"spark1", "0123", "A CPU"}) { return {fs_, JoinPath(dir_, "cache/holdfast"), machine}; }
  void Overwrite(const std::string& path, const std::string& text) {
    auto file = fs_.Create(path, 0644);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->Append(AsBytes(text)).ok());
    ASSERT_TRUE((*file)->Close().ok());
  }
  std::string Text(const std::string& path) {
    const auto bytes = fs_.ReadFile(path);
    return bytes.ok() ? std::string(AsText(*bytes)) : "";
  }

  PosixFileSystem fs_;
  std::string dir_;
  const Json question_{{"what", "layer"}, {"version", "0.1.0"}, {"hidden", 64}};
  const Json answer_{{"load_ns", 5}};
};

TEST_F(ProbeCacheTest, FindsWhatItKept) {
  EXPECT_FALSE(Cache().Find(question_).answer);
  EXPECT_EQ(Cache().Find(question_).note, "");
  ASSERT_TRUE(Cache().Keep(question_, answer_).ok());
  const auto found = Cache().Find(question_);
  ASSERT_TRUE(found.answer) << found.note;
  EXPECT_EQ(*found.answer, answer_);
  ASSERT_TRUE(Cache().Keep(question_, {{"load_ns", 6}}).ok());   // over the old one
  EXPECT_EQ((*Cache().Find(question_).answer)["load_ns"], 6);
  const auto names = fs_.List(JoinPath(dir_, "cache/holdfast"));
  ASSERT_TRUE(names.ok());
  EXPECT_EQ(names->size(), 1u) << "temporary files stayed";
}

TEST_F(ProbeCacheTest, AnotherQuestionIsAnotherEntry) {
  ASSERT_TRUE(Cache().Keep(question_, answer_).ok());
  for (const auto& [field, value] : question_.items()) {
    Json other = question_;
    other[field] = "other";
    EXPECT_FALSE(Cache().Find(other).answer) << field;
  }
}

TEST_F(ProbeCacheTest, AnEntryOfAnotherMachineIsNotUsed) {
  ASSERT_TRUE(Cache().Keep(question_, answer_).ok());
  for (const MachineName& other : {MachineName{"spark2", "0123", "A CPU"}, MachineName{"spark1", "4567", "A CPU"}, MachineName{"spark1", "0123", "Another"}}) {
    const auto found = Cache(other).Find(question_);
    EXPECT_FALSE(found.answer);
    EXPECT_NE(found.note.find("another machine"), std::string::npos) << found.note;
  }
}

TEST_F(ProbeCacheTest, DamagedAndOversizedEntriesAreNotUsed) {
  ASSERT_TRUE(Cache().Keep(question_, answer_).ok());
  const std::string path = Cache().PathOf(question_), good = Text(path);
  ASSERT_NE(good, "");
  for (size_t length = 0; length + 1 < good.size(); ++length) {
    Overwrite(path, good.substr(0, length));
    const auto found = Cache().Find(question_);
    EXPECT_FALSE(found.answer) << "cut to " << length;
    EXPECT_NE(found.note, "") << "cut to " << length;
  }
  for (const std::string& bad : {std::string("[]"), std::string("null"), good + good, std::string("{\"holdfast_probe\":2}"), std::string("{\"holdfast_probe\":NaN}"),
                                 good.substr(0, 1) + "\"x\":\"" + std::string(kProbeEntryBytesMax, 'x') + "\"," + good.substr(1)}) {
    Overwrite(path, bad);
    const auto found = Cache().Find(question_);
    EXPECT_FALSE(found.answer) << bad.substr(0, 60);
    EXPECT_NE(found.note, "");
  }
}

TEST_F(ProbeCacheTest, AnAnswerToAnotherQuestionUnderThisNameIsNotUsed) {
  Json other = question_;
  other["hidden"] = 65;
  ASSERT_TRUE(Cache().Keep(other, answer_).ok());
  Overwrite(Cache().PathOf(question_), Text(Cache().PathOf(other)));
  const auto found = Cache().Find(question_);
  EXPECT_FALSE(found.answer);
  EXPECT_NE(found.note.find("another question"), std::string::npos) << found.note;
}

TEST_F(ProbeCacheTest, WithoutADirectoryNothingIsKeptAndNothingFails) {
  const ProbeCache none(fs_, "", {});
  EXPECT_TRUE(none.Keep(question_, answer_).ok());
  EXPECT_FALSE(none.Find(question_).answer);
}

TEST_F(ProbeCacheTest, WhereItCannotWriteItSaysSo) {
  Overwrite(JoinPath(dir_, "cache"), "a file where a directory should be");
  EXPECT_FALSE(Cache().Keep(question_, answer_).ok());
  EXPECT_FALSE(Cache().Find(question_).answer);
}

TEST_F(ProbeCacheTest, TheDirectoryComesFromTheEnvironment) {
  const char* const xdg = ::getenv("XDG_CACHE_HOME");
  const char* const home = ::getenv("HOME");
  const std::string had_xdg = xdg == nullptr ? "" : xdg, had_home = home == nullptr ? "" : home;
  ::setenv("XDG_CACHE_HOME", "/x", 1);
  EXPECT_EQ(ProbeCache::DefaultDir(), "/x/holdfast");
  ::setenv("XDG_CACHE_HOME", "relative", 1);
  ::setenv("HOME", "/home/one", 1);
  EXPECT_EQ(ProbeCache::DefaultDir(), "/home/one/.cache/holdfast");
  ::unsetenv("HOME");
  EXPECT_EQ(ProbeCache::DefaultDir(), "");
  xdg == nullptr ? ::unsetenv("XDG_CACHE_HOME") : ::setenv("XDG_CACHE_HOME", had_xdg.c_str(), 1);
  if (home != nullptr) ::setenv("HOME", had_home.c_str(), 1);
}

TEST_F(ProbeCacheTest, ProbingADiskLeavesNothingBehind) {
  const RealClock clock;
  const auto probe = ProbeDisk(fs_, clock, dir_);
  ASSERT_TRUE(probe.ok()) << probe.error().message;
  EXPECT_GT(probe->write_bytes_per_s, 1u);
  EXPECT_GT(probe->read_bytes_per_s, 1u);
  EXPECT_GT(probe->hash_bytes_per_s, 1u);
  EXPECT_TRUE(fs_.List(dir_)->empty());
  EXPECT_FALSE(ProbeDisk(fs_, clock, JoinPath(dir_, "nowhere")).ok());
}

}  // namespace
}  // namespace holdfast
