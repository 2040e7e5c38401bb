// SPDX-License-Identifier: Apache-2.0
//
// What the tests of sockets share: a directory of their own and keys in it.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

#include "daemon/transport/keys.h"
#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"

namespace holdfast {

class TempDir {
 public:
  TempDir() {
    std::string pattern = JoinPath(::testing::TempDir(), "holdfast-XXXXXX");
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline CurveKeys KeysOf(const std::string& keys_dir, const std::string& name) {
  const Status made = MakeKeys(keys_dir, name);
  EXPECT_TRUE(made.ok()) << made.error().message;
  auto keys = ReadKeys(keys_dir, name);
  EXPECT_TRUE(keys.ok() && keys->has_value());
  return keys.ok() && keys->has_value() ? **keys : CurveKeys{};
}

// Turns the world until `done`, generously long: for things that happen on other threads.
template <class Done>
bool Eventually(const Done& done, int rounds = 3000) {
  RealClock clock;
  for (int i = 0; i < rounds; ++i) {
    if (done()) return true;
    clock.SleepMs(10);
  }
  return done();
}

}  // namespace holdfast
