// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/fail_point.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <list>
#include <map>
#include <string>

#include "ledger/base/clock.h"

namespace holdfast {
namespace {

struct Armed {
  std::string point, subject, action;
  std::atomic<long> left{1};
};

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::list<Armed> Parse() {
  const std::string lives = Variable("HOLDFAST_FAIL");
  std::list<Armed> all;
  std::string rest = lives.substr(0, lives.find(',')) + ";" + Variable("HOLDFAST_FAIL_ALWAYS");
  while (!rest.empty()) {
    const size_t semi = rest.find(';');
    std::string one = rest.substr(0, semi);
    rest = semi == std::string::npos ? "" : rest.substr(semi + 1);
    if (one.empty()) continue;
    Armed& a = all.emplace_back();
    a.action = "kill";
    if (const size_t eq = one.find('='); eq != std::string::npos) {
      a.action = one.substr(eq + 1);
      one.resize(eq);
    }
    if (const size_t colon = one.rfind(':'); colon != std::string::npos) {
      a.left = std::strtol(one.c_str() + colon + 1, nullptr, 10);
      one.resize(colon);
    }
    if (const size_t at = one.find('@'); at != std::string::npos) {
      a.subject = one.substr(at + 1);
      one.resize(at);
    }
    a.point = one;
  }
  return all;
}

// One write(2) to a file opened for appending: lines of several processes do not mix.
void Trace(std::string_view point, std::string_view subject, const std::string& action = "") {
  static const std::string path = Variable("HOLDFAST_FAIL_TRACE");
  if (path.empty()) return;
  static const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const std::string line = std::to_string(RealClock().MonotonicNs()) + " " + std::to_string(::getpid()) + " " + std::string(point) + "@" +
                           std::string(subject) + (action.empty() ? "" : " = " + action) + "\n";
  if (fd >= 0 && ::write(fd, line.data(), line.size()) < 0) {
    // A lost line of a test's trace; the test that misses it will say so.
  }
}

Status Fire(const std::string& action, std::string_view point) {
  static const std::map<std::string, int> kErrnos = {{"enospc", ENOSPC}, {"edquot", EDQUOT}, {"eio", EIO}, {"estale", ESTALE}};
  if (action == "kill") ::kill(::getpid(), SIGKILL);
  if (action == "pause") ::kill(::getpid(), SIGSTOP);
  if (action == "oom") return Exhausted("fail-point " + std::string(point) + ": out of memory");
  if (action == "fault") return Internal("fail-point " + std::string(point) + ": unspecified launch failure");
  const auto error = kErrnos.find(action);
  return error == kErrnos.end() ? OkStatus() : Status(ErrnoError(error->second, "fail-point " + std::string(point)));
}

}  // namespace

Status FailPoint(std::string_view point, std::string_view subject) {
  static std::list<Armed> armed = Parse();
  Trace(point, subject);
  for (Armed& a : armed) {
    if (a.point != point || (!a.subject.empty() && a.subject != subject)) continue;
    if (a.left.fetch_sub(1) != 1) continue;
    Trace(point, subject, a.action);
    HOLDFAST_TRY(Fire(a.action, point));
  }
  return OkStatus();
}

std::string FailPointsAfter(size_t lives) {
  std::string rest = Variable("HOLDFAST_FAIL");
  for (; lives > 0 && !rest.empty(); --lives) {
    const size_t comma = rest.find(',');
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
  }
  return rest;
}

}  // namespace holdfast
