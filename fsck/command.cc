// SPDX-License-Identifier: Apache-2.0
#include "fsck/command.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

#include "ledger/base/process_identity.h"

namespace holdfast {
namespace {

std::atomic<bool> g_stop{false};   // a signal handler can reach nothing but globals
void OnSignal(int) { g_stop.store(true); }

void CatchSignals() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

void Print(const Json& document) { std::printf("%s\n", document.dump(2, ' ', false, Json::error_handler_t::replace).c_str()); }

class Command {
 public:
  explicit Command(FsckRequest request) : r_(std::move(request)), terminal_(!r_.json && ::isatty(STDERR_FILENO) == 1) {
    if (terminal_) {
      r_.options.check.on_progress = [](uint64_t done, uint64_t total) {
        std::fprintf(stderr, "\r\033[Kread %.1f of %.1f GB", static_cast<double>(done) / 1e9, static_cast<double>(total) / 1e9);
      };
    }
    r_.options.on_line = [this](const std::string& line) {
      lines_.push_back(line);
      if (!r_.json) EndProgress(), std::printf("%s\n", line.c_str()), std::fflush(stdout);
    };
    r_.options.check.mount_table = ReadSystemText("/proc/self/mountinfo");
    r_.options.stop = &g_stop;
    r_.options.dry_run = r_.dry_run;
  }

  int Run() {
    if (!r_.undo.empty()) return Undo();
    return r_.repair || r_.dry_run ? Repair() : Check();
  }

 private:
  void EndProgress() const {
    if (terminal_) std::fputs("\r\033[K", stderr);
  }

  void Show(const FsckReport& report) const {
    EndProgress();
    std::fputs(FsckReportToText(r_.dir, report).c_str(), stdout);
  }

  int Check() {
    const FsckReport report = RunFsck(fs_, r_.dir, r_.options.check);
    if (r_.json) {
      Print(FsckReportToJson(r_.dir, report));
    } else {
      Show(report);
    }
    return report.exit_status;
  }

  int Repair() {
    CatchSignals();
    const RepairReport report = RunRepair(fs_, clock_, r_.dir, r_.options);
    if (r_.json) {
      Json j = {{"schema", 1}, {"run", r_.dir}, {"dry_run", r_.dry_run}, {"exit_status", report.exit_status}, {"before", FsckReportToJson(r_.dir, report.before)},
                {"steps", lines_}, {"salvaged", report.salvaged}, {"quarantines", report.quarantines}, {"refusals", report.refusals}};
      if (report.acted) j["after"] = FsckReportToJson(r_.dir, report.after);
      Print(j);
      return report.exit_status;
    }
    for (const std::string& why : report.refusals) std::printf("not repaired: %s\n", why.c_str());
    if (report.acted) std::printf("---- after the repair ----\n");
    Show(report.acted ? report.after : report.before);
    for (const std::string& q : report.quarantines) {
      const std::string dir = DirName(DirName(q)), id = BaseName(q);
      std::printf("to take it back: jobctl fsck %s --undo %s\n", dir.c_str(), id.c_str());
    }
    if (report.acted && report.salvaged > 0) std::printf("salvaged: %llu records of lost slots were said again\n", static_cast<unsigned long long>(report.salvaged));
    if ((report.exit_status & kFsckReopened) != 0) std::printf("work is open again: jobctl resume\n");
    std::printf("exit status %d\n", report.exit_status);
    return report.exit_status;
  }

  int Undo() {
    const UndoReport report = RunUndo(fs_, clock_, r_.dir, r_.undo, r_.options);
    if (r_.json) {
      Print({{"schema", 1}, {"run", r_.dir}, {"undo", r_.undo}, {"exit_status", report.exit_status}, {"steps", report.lines}});
    } else {
      for (const std::string& line : report.lines) std::printf("%s\n", line.c_str());
    }
    return report.exit_status;
  }

  PosixFileSystem fs_;
  RealClock clock_;
  FsckRequest r_;
  const bool terminal_;
  std::vector<std::string> lines_;
};

}  // namespace

int RunFsckCommand(FsckRequest request) { return Command(std::move(request)).Run(); }

}  // namespace holdfast
