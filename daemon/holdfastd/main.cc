// SPDX-License-Identifier: Apache-2.0
//
// holdfastd: signals, exit status, and the real clock. What it may be told: options.h; what it does: node_daemon.h.
#include <signal.h>

#include <atomic>
#include <cstdio>
#include <iostream>

#include "daemon/holdfastd/node_daemon.h"
#include "daemon/holdfastd/options.h"

namespace {

std::atomic<int> g_stop{0};   // a signal handler can reach nothing but a global

void CatchSignals() {
  struct sigaction action {};
  action.sa_handler = [](int sig) { g_stop.store(sig); };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGHUP, SIG_IGN);
  ::signal(SIGPIPE, SIG_IGN);
}

int ExitCode(const holdfast::Status& status) {
  using holdfast::ErrorCode;
  switch (status.code()) {
    case ErrorCode::kOk: return 0;
    case ErrorCode::kStopped:
    case ErrorCode::kFenced:
    case ErrorCode::kTransient: return 75;
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
    case ErrorCode::kAlreadyExists:
    case ErrorCode::kNotFound: return 2;
    default: return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace holdfast;
  const auto refuse = [](const Error& error) {
    std::fprintf(stderr, "holdfastd: %s\n", error.message.c_str());
    return ExitCode(error);
  };
  const auto options = ReadDaemonOptions(argc, argv, std::cout);
  if (!options.ok()) return refuse(options.error());
  if (!*options) return 0;
  CatchSignals();
  RealClock clock;
  const Status status = RunDaemon(clock, **options, g_stop);
  return status.ok() ? 0 : refuse(status.error());
}
