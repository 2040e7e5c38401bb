// SPDX-License-Identifier: Apache-2.0
//
// holdfast-worker: one stage, one device, one life. Started by a supervisor with one JSON argument.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <new>
#include <string>

#include "calib/probe/probe.h"
#include "calib/runner/runner.h"
#include "daemon/worker/exit_code.h"
#include "daemon/worker/stage_worker.h"
#include "ledger/base/trace.h"
#include "ledger/cluster/root.h"

namespace {

holdfast::StopFlag g_stop;  // a signal handler can reach nothing but a global

void OnSignal(int sig) {
  g_stop.signal.store(sig);
  g_stop.raised.store(true);
}

int Print(const holdfast::Json& json) {
  std::printf("%s\n", holdfast::CanonicalJson(json).c_str());
  std::fflush(nullptr);
  _exit(0);   // as below: destructors could only add ways to fail
}

int MeasureLayer(const char* question) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::alarm(holdfast::kProbeSecondsMax);   // ends this process if something hangs
  holdfast::PosixFileSystem fs;
  const holdfast::RealClock clock;
  const auto asked = holdfast::LayerQuestion::Decode(question);
  const auto probe = asked.ok() ? holdfast::ProbeLayer(fs, clock, *asked) : holdfast::Result<holdfast::LayerProbe>(asked.error());
  if (!probe.ok()) {
    std::fprintf(stderr, "%s\n", probe.error().message.c_str());
    return holdfast::ExitCodeOf(probe.error());
  }
  std::printf("%s\n", holdfast::CanonicalJson(probe->ToJson()).c_str());
  std::fflush(nullptr);
  _exit(0);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace holdfast;
  const std::string arg = argc == 2 ? argv[1] : argc == 3 ? std::string(argv[1]) : "--help";
  if (arg == "--version") return std::printf("holdfast-worker %s\n", HOLDFAST_VERSION) > 0 ? 0 : 1;
  if (arg == "--probe" && argc == 3) return Print(FindDevices(argv[2]).ToJson());
  if (arg == "--measure" && argc == 3) return Print(Json{{"speed", MeasureSpeed(argv[2])}});
  if (arg == "--measure-layer" && argc == 3) return MeasureLayer(argv[2]);
  if (argc != 2 || arg == "--help") {
    std::printf("usage: holdfast-worker JSON | --probe DEVICES | --measure DEVICE | --measure-layer JSON | --version\n\nComputes one stage of a run. Started by `jobctl run` and holdfastd(8); see jobctl(1).\n\n"
                "EXIT STATUS: 0 stage sealed, 1 failed, 2 refused its input, 71 out of memory, 75 stopped, resumable.\n");
    return arg == "--help" ? 0 : 2;
  }
  const auto args = WorkerArgs::Decode(arg);
  if (!args.ok()) {
    std::fprintf(stderr, "holdfast-worker: %s\n", args.error().message.c_str());
    return kExitRefused;
  }
  struct sigaction action {};
  action.sa_handler = OnSignal;
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  PosixFileSystem posix;
  const auto renaming = args->renaming ? MakeRenamingFileSystem(posix) : nullptr;
  FileSystem& fs = args->renaming ? *renaming : static_cast<FileSystem&>(posix);
  RealClock clock;
  Status status = OkStatus();
  try {
    StageWorker worker(fs, clock, *args, g_stop);
    status = worker.Run();
  } catch (const std::bad_alloc&) {
    status = Exhausted("out of memory in stage " + std::to_string(args->stage));
  }
  if (const Status traced = WriteTrace("holdfast-worker"); !traced.ok()) std::fprintf(stderr, "%s\n", traced.error().message.c_str());
  std::fflush(nullptr);
  // Everything durable is durable; destructors of libtorch at exit could only add ways to fail.
  _exit(ExitCodeOf(status));
}
