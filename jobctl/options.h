// SPDX-License-Identifier: Apache-2.0
//
// What the command line said, parsed and checked for shape. One struct per command; defaults stand here and nowhere else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ledger/base/result.h"

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
  std::vector<uint32_t> shard_layers;
  std::optional<uint32_t> stages;
  std::optional<std::string> recipe;
  std::optional<std::string> max_shard_size;
  std::string device = "auto";
  uint32_t threads = 0;                   // 0: all cores
  std::optional<uint64_t> memory;
  bool json = false, quiet = false;
  bool resume = false;                    // `jobctl resume`: everything that decides the result comes from the job record
};

struct StatusOptions {
  std::string dir;
  bool json = false, follow = false;
};
struct FsckOptionsCli {
  std::string dir;
  bool json = false, deep = false;
};
struct VerifyOptionsCli {
  std::string out, source;
  bool json = false;
  uint32_t threads = 0;
};

// "24G", "1.5GiB", "800M", "123": bytes. G = GB = 10^9, GiB = 2^30.
Result<uint64_t> ParseSize(const std::string& text);
std::string FormatSize(uint64_t bytes);        // "1.23 GB"
std::string FormatDuration(uint64_t seconds);  // "1 h 02 min", "3 min 05 s", "42 s"

int RunCommand(const RunOptions& options);
int StatusCommand(const StatusOptions& options);
int FsckCommand(const FsckOptionsCli& options);
int VerifyCommand(const VerifyOptionsCli& options);

// Prints "jobctl: message" to stderr, or an {"event":"error"} line to stdout with --json, and returns the exit code that fits.
int Fail(const Error& error, bool json);

}  // namespace holdfast
