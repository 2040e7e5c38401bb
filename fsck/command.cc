// SPDX-License-Identifier: Apache-2.0
#include "fsck/command.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "ledger/base/printable.h"
#include "ledger/base/process_identity.h"
#include "ledger/base/units.h"

namespace holdfast {
namespace {

std::atomic<bool> g_stop{false};   // a signal handler can reach nothing but globals
void OnSignal(int) { g_stop.store(true); }

// Of this user; "" where he has no home.
std::string CacheDir() {
  for (const auto& [name, below] : {std::pair("XDG_CACHE_HOME", "/holdfast"), std::pair("HOME", "/.cache/holdfast")}) {
    const char* value = std::getenv(name);
    if (value != nullptr && value[0] == '/') return std::string(value) + below;
  }
  return "";
}

void Print(const Json& document) { std::printf("%s\n", document.dump(2, ' ', false, Json::error_handler_t::replace).c_str()); }

class Command {
 public:
  explicit Command(FsckRequest request) : r_(std::move(request)), terminal_(!r_.json && ::isatty(STDERR_FILENO) == 1) {
    if (terminal_) {
      r_.options.check.on_progress = [this](uint64_t done, uint64_t total) {
        const uint64_t now = clock_.MonotonicNs(), took = now - begun_ns_;
        const double left = done > 0 && total > done ? static_cast<double>(took) / 1e9 * static_cast<double>(total - done) / static_cast<double>(done) : 0;
        std::fprintf(stderr, "\r\033[Kread %s of %s, about %s left", FormatSize(done).c_str(), FormatSize(total).c_str(), FormatDuration(static_cast<uint64_t>(left)).c_str());
      };
    }
    r_.options.on_line = [this](const std::string& line) {
      lines_.push_back(line);
      if (!r_.json) EndProgress(), std::printf("%s\n", Printable(line).c_str()), std::fflush(stdout);
    };
    r_.options.check.mount_table = ReadSystemText("/proc/self/mountinfo");
    r_.options.check.export_table = ReadSystemText("/var/lib/nfs/etab");
    r_.options.check.host_name = HostName();
    const std::string unique = "/sys/module/nfs/parameters/nfs4_unique_id";
    if (fs_.Stat(unique).ok()) r_.options.check.nfs4_unique_id = SystemLine(unique);
    r_.options.check.clock = &clock_;
    r_.options.check.cache_dir = CacheDir();
    r_.options.stop = &g_stop;
    r_.options.check.stop = &g_stop;
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
    if (r_.options.check.deep) (void)StopOnSignals();   // else there is nothing to go on with
    const FsckReport report = RunFsck(fs_, r_.dir, r_.options.check);
    if (r_.json) {
      Print(FsckReportToJson(r_.dir, report));
    } else {
      Show(report);
    }
    return report.exit_status;
  }

  int Repair() {
    (void)StopOnSignals();
    const RepairReport report = RunRepair(fs_, clock_, r_.dir, r_.options);
    if (r_.json) {
      Json j = {{"schema", 1}, {"run", r_.dir}, {"dry_run", r_.dry_run}, {"exit_status", report.exit_status}, {"before", FsckReportToJson(r_.dir, report.before)},
                {"steps", lines_}, {"salvaged", report.salvaged}, {"quarantines", report.quarantines}, {"refusals", report.refusals}, {"next", report.next}};
      if (report.acted) j["after"] = FsckReportToJson(r_.dir, report.after);
      Print(j);
      return report.exit_status;
    }
    for (const std::string& why : report.refusals) std::printf("not repaired: %s\n", Printable(why).c_str());
    if (report.acted) std::printf("---- after the repair ----\n");
    Show(report.acted ? report.after : report.before);
    for (const std::string& q : report.quarantines) {
      const std::string dir = DirName(DirName(q)), id = BaseName(q);
      std::printf("to take it back: jobctl fsck %s --undo %s\n", dir.c_str(), id.c_str());
    }
    if (report.acted && report.salvaged > 0) std::printf("salvaged: %llu records of lost slots were said again\n", static_cast<unsigned long long>(report.salvaged));
    for (const std::string& next : report.next) std::printf("work is open again: %s\n", Printable(next).c_str());
    std::printf("exit status %d\n", report.exit_status);
    return report.exit_status;
  }

  int Undo() {
    const UndoReport report = RunUndo(fs_, clock_, r_.dir, r_.undo, r_.options);
    if (r_.json) {
      Print({{"schema", 1}, {"run", r_.dir}, {"undo", r_.undo}, {"exit_status", report.exit_status}, {"steps", report.lines}});
    } else {
      for (const std::string& line : report.lines) std::printf("%s\n", Printable(line).c_str());
    }
    return report.exit_status;
  }

  PosixFileSystem fs_;
  RealClock clock_;
  const uint64_t begun_ns_ = clock_.MonotonicNs();
  FsckRequest r_;
  const bool terminal_;
  std::vector<std::string> lines_;
};

}  // namespace

const std::atomic<bool>* StopOnSignals() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  return &g_stop;
}

int RunFsckCommand(FsckRequest request) { return Command(std::move(request)).Run(); }

}  // namespace holdfast
