// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/fail_point.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <list>
#include <string>

namespace holdfast {
namespace {

struct Armed {
  std::string point, subject, action;
  std::atomic<long> left{1};
};

std::list<Armed> Parse(const char* first_life, const char* every_life) {
  std::list<Armed> all;
  std::string rest = std::string(first_life == nullptr ? "" : first_life) + ";" + (every_life == nullptr ? "" : every_life);
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

}  // namespace

Status FailPoint(std::string_view point, std::string_view subject) {
  static std::list<Armed> armed = Parse(std::getenv("HOLDFAST_FAIL"), std::getenv("HOLDFAST_FAIL_ALWAYS"));
  for (Armed& a : armed) {
    if (a.point != point || (!a.subject.empty() && a.subject != subject)) continue;
    if (a.left.fetch_sub(1) != 1) continue;
    if (a.action == "kill") ::kill(::getpid(), SIGKILL);
    if (a.action == "pause") ::kill(::getpid(), SIGSTOP);
    if (a.action == "enospc") return ErrnoError(ENOSPC, "fail-point " + std::string(point));
    if (a.action == "eio") return ErrnoError(EIO, "fail-point " + std::string(point));
  }
  return OkStatus();
}

}  // namespace holdfast
