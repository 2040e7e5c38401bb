// SPDX-License-Identifier: Apache-2.0
//
// holdfast-merge: the merge of one job, one life. Started by a supervisor with one JSON argument. Holds no torch: its memory does not
// depend on the model.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <new>
#include <string>

#include "daemon/node/job_report.h"
#include "daemon/node/process.h"
#include "daemon/node/worker_args.h"
#include "daemon/transport/sockets.h"
#include "daemon/worker/exit_code.h"
#include "export/merge/merge.h"
#include "ledger/base/trace.h"
#include "ledger/cluster/root.h"

namespace holdfast {
namespace {

std::atomic<bool> g_stop{false};   // a signal handler can reach nothing but a global

class MergeJob {
 public:
  MergeJob(FileSystem& fs, const Clock& clock, const WorkerArgs& args, Socket& control)
      : fs_(fs), clock_(clock), args_(args), control_(control), state_(fs, RunLayout(args.run_dir)) {
    report_.attempt = args.attempt;
    report_.phase = "merge";
  }

  Status Run() {
    Send();
    const Status status = Work();
    report_.kind = status.ok() ? WorkerReport::Kind::kFinished : WorkerReport::Kind::kFailed;
    if (!status.ok()) {
      report_.error_code = ErrorCodeName(status.code());
      report_.error = status.error().message;
    }
    Send();
    return status;
  }

 private:
  void Send() {
    report_.rss_bytes = RssBytes(::getpid()).value_or(0);
    const std::string text = report_.Encode();
    control_.Send({AsBytes(text)});
  }

  Status Work() {
    const uint64_t begin_ns = clock_.MonotonicNs();
    HOLDFAST_TRY(state_.Refresh());
    const Incarnation self = DescribeThisProcess(args_.node, "holdfast-merge", args_.device);
    HOLDFAST_TRY(fs_.MakeDirs(state_.layout().TmpDir(self.nonce)));
    StreamWriter::Options options;
    options.job = state_.job().uuid;
    options.claim = {.epoch = 0, .incarnation = self.nonce, .node = args_.node, .reason = args_.reason, .pid = self.pid, .numerics = {}};
    options.wait = [](uint64_t ms) { RealClock().SleepMs(ms); };
    const std::string stream = RunLayout::MergeStream();
    HOLDFAST_ASSIGN(const auto writer, StreamWriter::Open(fs_, state_.layout(), clock_, state_.ReaderOf(stream),
                                                          [&](const Record& r, const Slot& s) { return state_.Apply(stream, r, s); }, options,
                                                          {MakeControl({.cls = RecordClass::kIncarnation}, self.ToJson())}));
    const Status status = Merge(*writer, self.nonce, begin_ns);
    if (status.code() == ErrorCode::kStopped) HOLDFAST_TRY(writer->ReleaseStream("drain"));
    return status;
  }

  Status Merge(StreamWriter& writer, const Nonce& incarnation, uint64_t begin_ns) {
    MergeOptions merge;
    merge.threads = args_.size.threads;
    merge.incarnation = incarnation;
    merge.stop = &g_stop;
    merge.on_progress = [this](const MergeProgress& p) {
      report_.bytes_written = p.bytes_done;
      report_.bytes_total = p.bytes_total;
      report_.units_done = p.files_done;
      report_.units_total = p.files_total;
      Send();
    };
    HOLDFAST_ASSIGN(const Digest manifest, RunMerge(fs_, state_, writer, merge));
    report_.phase = "done";   // before the record that says so to everybody: nobody needs to ask this process to stop
    Send();
    HOLDFAST_TRY(state_.Refresh());
    if (!state_.done()) {
      auto phases = args_.phase_ms;
      phases["merge"] += (clock_.MonotonicNs() - begin_ns) / 1'000'000;
      rusage usage{};
      ::getrusage(RUSAGE_SELF, &usage);
      const uint64_t peak = std::max<uint64_t>(args_.rss_peak_bytes, static_cast<uint64_t>(usage.ru_maxrss) * 1024);
      DoneRecord done{.manifest = manifest, .report = {}};
      HOLDFAST_ASSIGN(done.report, BuildReport(state_, phases, peak));
      HOLDFAST_TRY(writer.Append({MakeControl({.cls = RecordClass::kDone}, done.ToJson())}));
    }
    (void)writer.ReleaseStream("done");   // the job is done without it, too; whoever ended it may have swept our private directory already
    return OkStatus();
  }

  FileSystem& fs_;
  const Clock& clock_;
  const WorkerArgs& args_;
  Socket& control_;
  RunState state_;
  WorkerReport report_;
};

Status Run(const WorkerArgs& args) {
  PosixFileSystem posix;
  const auto renaming = args.renaming ? MakeRenamingFileSystem(posix) : nullptr;
  FileSystem& fs = args.renaming ? *renaming : static_cast<FileSystem&>(posix);
  RealClock clock;
  Context context;
  HOLDFAST_ASSIGN(const auto control, Socket::Open(context, Socket::Kind::kDealer, ControlEndpoint(args.supervisor), kControlBytesMax, kLastWordsMs));
  try {
    return MergeJob(fs, clock, args, *control).Run();
  } catch (const std::bad_alloc&) {
    return Exhausted("out of memory in the merge");
  }
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  using namespace holdfast;
  const std::string arg = argc == 2 ? argv[1] : "--help";
  if (arg == "--version") return std::printf("holdfast-merge %s\n", HOLDFAST_VERSION) > 0 ? 0 : 1;
  if (arg == "--help") {
    std::printf("usage: holdfast-merge JSON | --version\n\nMerges one finished run. Started by `jobctl run` and holdfastd(8); see jobctl(1).\n\n"
                "EXIT STATUS: 0 merged, 1 failed, 2 refused its input, 71 out of memory, 75 stopped, resumable.\n");
    return argc == 2 ? 0 : 2;
  }
  const auto args = WorkerArgs::Decode(arg);
  if (!args.ok()) {
    std::fprintf(stderr, "holdfast-merge: %s\n", args.error().message.c_str());
    return kExitRefused;
  }
  struct sigaction action {};
  action.sa_handler = [](int) { g_stop.store(true); };
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  const Status status = Run(*args);
  if (const Status traced = WriteTrace("holdfast-merge"); !traced.ok()) std::fprintf(stderr, "%s\n", traced.error().message.c_str());
  return ExitCodeOf(status);
}
