// SPDX-License-Identifier: Apache-2.0
//
// What was measured before, so that it need not be measured again: one small JSON file per question, below $XDG_CACHE_HOME/holdfast or
// ~/.cache/holdfast, written aside and renamed. Belongs to the machine that measured: its host name, machine-id and processor stand in it, and an
// entry of another machine, of another version or question, damaged or oversized is not used, and said to be so. Nothing depends on it.
#pragma once

#include <optional>
#include <string>

#include "ledger/base/file_system.h"
#include "ledger/base/json.h"

namespace holdfast {

inline constexpr uint64_t kProbeEntryBytesMax = 256u << 10;

struct MachineName {
  std::string host, machine_id, processor;
  static MachineName This();
};

class ProbeCache {
 public:
  // `dir` "": there is none, nothing is found and nothing kept. `question` of the calls below: everything that the answer depends on, version included.
  ProbeCache(FileSystem& fs, std::string dir, MachineName machine) : fs_(fs), dir_(std::move(dir)), machine_(std::move(machine)) {}
  static std::string DefaultDir();   // from the environment; "" where that names no absolute directory

  struct Found {
    std::optional<Json> answer;
    std::string note;                // why what lies there is not used; "" = it is, or nothing lies there
  };
  Found Find(const Json& question) const;
  Status Keep(const Json& question, const Json& answer) const;
  std::string PathOf(const Json& question) const;

 private:
  Json MachineJson() const;
  FileSystem& fs_;
  const std::string dir_;
  const MachineName machine_;
};

}  // namespace holdfast
