// SPDX-License-Identifier: Apache-2.0
//
// holdfastd: the command line. Every option may also stand in a TOML file (--config), or in the environment where noted.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <string>

#include "daemon/holdfastd/node_daemon.h"
#include "daemon/node/process.h"
#include "ledger/base/units.h"

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
  DaemonOptions o;
  std::string memory;
  CLI::App app{"holdfastd: a node of Holdfast. Works on the jobs of a shared directory; see holdfastd(8)"};
  app.add_option("--root", o.root, "directory that the nodes share (also HOLDFAST_ROOT)")->envname("HOLDFAST_ROOT")->required();
  app.add_option("--name", o.name, "this node's name, unique in the root (default: the host's name)");
  app.add_option("--listen", o.listen, "address to listen on, e.g. 10.0.0.2 or 10.0.0.2:7070; off: no ZeroMQ (default 127.0.0.1)");
  app.add_option("--device", o.device, "auto, cpu, cuda or cuda:N (default auto)");
  app.add_option("--memory", memory, "memory that this node's workers may plan with, e.g. 24G (default: what is available)");
  app.add_option("--threads", o.threads, "threads of each stage (default: all cores)");
  app.add_option("--suspect", o.suspect_s, "seconds without a sign of life after which a node's stages go to others (default 120)")->check(CLI::Range(1, 86400));
  app.add_flag("--takeover", o.takeover, "take the name from a daemon that has it: that one is fenced");
  app.add_flag("!--no-notify", o.notify, "do not run the commands of `jobctl submit --notify` on this node");
  app.set_config("--config", "", "TOML file with any of these options");
  app.set_version_flag("--version", std::string("holdfastd ") + HOLDFAST_VERSION);
  app.footer("EXAMPLE: holdfastd --root /mnt/nfs/holdfast --name spark1 --listen 10.0.0.2\n"
             "EXIT STATUS: 2 could not begin; 75 stopped (SIGTERM, SIGINT: drained within 30 s) or its name was taken over; 1 failed.\n");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  const auto refuse = [](const Error& error) {
    std::fprintf(stderr, "holdfastd: %s\n", error.message.c_str());
    return ExitCode(error);
  };
  if (!memory.empty()) {
    const auto bytes = ParseSize(memory);
    if (!bytes.ok()) return refuse(Annotate(bytes.error(), "--memory"));
    o.memory_bytes = *bytes;
  }
  if (o.name.empty()) o.name = HostName();
  CatchSignals();
  RealClock clock;
  const Status status = RunDaemon(clock, o, g_stop);
  return status.ok() ? 0 : refuse(status.error());
}
