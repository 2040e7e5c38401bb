// SPDX-License-Identifier: Apache-2.0
//
// What the command line said, parsed and checked for shape. One struct per command; defaults stand here and nowhere else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ledger/base/result.h"
#include "ledger/base/units.h"

namespace holdfast {

// Exit codes of every command but fsck (whose code is a bit mask, see fsck.h). They stand in --help, jobctl(1) and the README.
inline constexpr int kExitOk = 0;         // done
inline constexpr int kExitFailure = 1;    // failed
inline constexpr int kExitUsage = 2;      // refused before anything was started
inline constexpr int kExitResumable = 75; // stopped; the same line again continues

inline constexpr uint32_t kSeqLenDefault = 512;
inline constexpr uint64_t kShardBytesDefault = 5'000'000'000;   // decimal, as Hugging Face counts

struct RunOptions {
  std::string source, calib, out, run_dir;
  std::optional<uint32_t> samples, seq_len;
  uint32_t skip_samples = 0;              // so many may be left out
  std::vector<uint32_t> shard_layers;
  std::optional<uint32_t> stages;
  std::optional<std::string> recipe, layout;
  std::optional<std::string> max_shard_size;
  std::string device = "auto";
  uint32_t threads = 0;                   // 0: all cores
  std::optional<uint64_t> memory;
  bool json = false, quiet = false;
  bool resume = false;                    // `jobctl resume`: everything that decides the result comes from the job record
};

struct PlanOptions {
  RunOptions run;                         // what `run` would be told; `out` may be ""
  std::string root;                       // "": for this machine
  std::vector<std::string> on;
  bool no_probe = false;                  // measure nothing now
};

struct StatusOptions {
  std::string dir;                        // run directory
  bool json = false, follow = false;
};

// ---- commands about a root. `root` is absolute ----

struct SubmitOptions {
  std::string root, source, calib, out;
  std::string name;                       // "": the base name of `out`
  std::vector<uint32_t> shard_layers;
  std::vector<std::string> on, after;
  int priority = 0;                       // -100 .. 100, higher goes first
  std::optional<uint32_t> samples, seq_len;
  uint32_t skip_samples = 0;
  std::optional<std::string> recipe, layout, max_shard_size;
  std::string notify;
  bool reproducible = false, json = false, quiet = false;
  bool plan_only = false;                 // `jobctl plan`: says what submit would, and writes nothing
};
struct RootStatusOptions {
  std::string root, job;                  // "": all jobs
  bool json = false, follow = false;
};
struct NodesOptions {
  std::string root;
  bool json = false;
};
struct JobOptions {                       // cancel, resume
  std::string root, job;
  bool json = false;
};
enum class Drain : uint8_t { kDrain, kUndrain };
struct DrainOptions {
  std::string root, node;
  Drain what = Drain::kDrain;
  bool json = false;
};
struct LogsOptions {
  std::string root, job, node;            // node "": all
  bool follow = false;
};
struct KeygenOptions {
  std::string root;
  std::vector<std::string> names;         // empty: this host
};
struct FsckOptionsCli {
  std::string dir;
  bool json = false, deep = false, repair = false, dry_run = false, salvage = false;
  uint32_t reproduce = 0;                 // layers to quantize once more
  uint64_t rate = 0;                      // bytes a second; 0 = as fast as it goes
  std::string undo;                       // id of a repair; "" = none
};
struct GcOptionsCli {
  std::string dir;
  bool json = false, dry_run = false;
  std::string quarantine;                 // id of a repair, or "all"; "" = none
};
struct VerifyOptionsCli {
  std::string out, source;
  bool json = false;
  uint32_t threads = 0;
};

struct ExportOptionsCli {
  std::string run_dir, out, layout;
  uint32_t threads = 0;
  bool json = false, quiet = false;
};

int RunCommand(const RunOptions& options);
int PlanCommand(const PlanOptions& options);
int StatusCommand(const StatusOptions& options);
int SubmitCommand(const SubmitOptions& options);
int RootStatusCommand(const RootStatusOptions& options);
int NodesCommand(const NodesOptions& options);
int CancelCommand(const JobOptions& options);
int ResumeJobCommand(const JobOptions& options);
int DrainCommand(const DrainOptions& options);
int LogsCommand(const LogsOptions& options);
int KeygenCommand(const KeygenOptions& options);
int FsckCommand(const FsckOptionsCli& options);
int GcCommand(const GcOptionsCli& options);
int VerifyCommand(const VerifyOptionsCli& options);
int ExportCommand(const ExportOptionsCli& options);

// The exit status that an error ends with.
int ExitStatusOf(ErrorCode code);
// Prints "jobctl: message" to stderr, or an {"event":"error"} line to stdout with --json, and returns the exit code that fits.
int Fail(const Error& error, bool json);

}  // namespace holdfast
