// SPDX-License-Identifier: Apache-2.0
//
// How a run shows itself: a redrawn line on a terminal, a plain line every few seconds elsewhere, JSON lines for machines.
// Knows rates and ETA; knows nothing of processes or ledgers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "daemon/node/supervisor.h"
#include "export/merge/merge.h"
#include "ledger/base/clock.h"

namespace holdfast {

class Progress {
 public:
  enum class Mode : uint8_t { kQuiet, kTerminal, kPlain, kJson };
  Progress(const Clock& clock, Mode mode);
  ~Progress();                                   // leaves the cursor on a fresh line

  void Event(const std::string& text);           // one line, in every mode but quiet; JSON: {"event":"note"}
  void EventJson(const Json& line);              // JSON mode only
  void Stages(const std::vector<StageProgress>& stages);
  void Merge(const MergeProgress& merge);
  // Milliseconds that passed in each phase, as shown ("load", "calibrate", "evict", "merge"), and in those that AddPhase named: no time counts twice.
  const std::map<std::string, uint64_t>& phase_ms() const { return phase_ms_; }
  void AddPhase(const std::string& phase, uint64_t ms);   // that ends now; what passed besides since the last one belongs to no phase
  Mode mode() const { return mode_; }

 private:
  void Show(const std::string& line, const Json& json);
  void Attribute(const std::string& phase);
  const Clock& clock_;
  Mode mode_;
  uint64_t shown_ns_ = 0, attributed_ns_;
  bool line_open_ = false;
  std::string shown_phase_;
  uint64_t rate_base_ns_ = 0, rate_base_count_ = 0;
  std::map<std::string, uint64_t> phase_ms_;
};

}  // namespace holdfast
