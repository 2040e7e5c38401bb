// SPDX-License-Identifier: Apache-2.0
//
// Timelines: what a process writes is what a viewer reads, from all threads; without the variable nothing is written.
#include "ledger/base/trace.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "ledger/base/json.h"

namespace holdfast {
namespace {

class TraceTest : public testing::Test {
 protected:
  TraceTest() {
    char name[] = "/tmp/holdfast-trace-XXXXXX";
    dir_ = ::mkdtemp(name);
  }
  ~TraceTest() override { std::filesystem::remove_all(dir_); }
  // The variable is read once in a process: each test has one of its own. Returns its exit status.
  template <class F>
  int InChild(const std::string& dir, F f) {
    const pid_t child = ::fork();
    if (child == 0) {
      dir.empty() ? ::unsetenv("HOLDFAST_TRACE") : ::setenv("HOLDFAST_TRACE", dir.c_str(), 1);
      ::_exit(f());
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    child_ = child;
    return WEXITSTATUS(status);
  }

  std::string dir_;
  pid_t child_ = 0;
};

TEST_F(TraceTest, SpansOfAllThreadsAreWritten) {
  ASSERT_EQ(InChild(dir_, [] {
    const TraceSpan still_open("open");
    {
      const TraceSpan outer("outer");
      const TraceSpan inner("inner");
    }
    std::thread([] { const TraceSpan span("elsewhere"); }).join();
    return WriteTrace("program").ok() ? 0 : 1;
  }), 0);
  std::ostringstream text;
  text << std::ifstream(dir_ + "/program." + std::to_string(child_) + ".json").rdbuf();
  const auto json = ParseJson(text.str(), "trace");
  ASSERT_TRUE(json.ok()) << text.str();
  std::map<std::string, Json> spans;
  for (const Json& e : (*json)["traceEvents"]) spans[e["name"]] = e;
  ASSERT_EQ(spans.size(), 3u) << "those that ended: " << text.str();
  EXPECT_EQ(spans["outer"]["tid"], spans["inner"]["tid"]);
  EXPECT_NE(spans["outer"]["tid"], spans["elsewhere"]["tid"]);
  EXPECT_LE(spans["outer"]["ts"].get<uint64_t>(), spans["inner"]["ts"].get<uint64_t>());
  for (const auto& [name, e] : spans) EXPECT_EQ(e["ph"], "X") << name;
}

TEST_F(TraceTest, WithoutTheVariableNothingIsWritten) {
  EXPECT_EQ(InChild("", [] {
    { const TraceSpan span("a"); }
    return WriteTrace("program").ok() && !Tracing() ? 0 : 1;
  }), 0);
  EXPECT_TRUE(std::filesystem::is_empty(dir_));
}

TEST_F(TraceTest, ADirectoryThatIsNotThereIsSaid) {
  EXPECT_EQ(InChild(dir_ + "/missing", [] {
    const Status written = WriteTrace("program");
    return !written.ok() && written.error().message.find("HOLDFAST_TRACE") != std::string::npos ? 0 : 1;
  }), 0);
}

}  // namespace
}  // namespace holdfast
