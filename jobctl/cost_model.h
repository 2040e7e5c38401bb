// SPDX-License-Identifier: Apache-2.0
//
// How long a job will take, phase by phase, from what was measured of one layer, of the disk, and from how a worker goes about it (docs/adr/0026).
// Pure. Every time is a range: from everything overlaps as it can and nobody disturbs, to it does not; widened by what was found when plans were
// compared with what came of them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "calib/model/layer_probe.h"

namespace holdfast {

struct DiskProbe {                   // of the directory that a run writes to; never 0
  uint64_t write_bytes_per_s = 1, read_bytes_per_s = 1;
  uint64_t hash_bytes_per_s = 1;     // SHA-256 on one thread
  Json ToJson() const;
  static Result<DiskProbe> FromJson(const Json& j, const std::string& what);
};

struct Seconds {
  double low = 0, high = 0;
  friend Seconds operator+(Seconds a, Seconds b) { return {a.low + b.low, a.high + b.high}; }
  friend Seconds operator*(double n, Seconds s) { return {n * s.low, n * s.high}; }
};

// What of one stage is still to be done.
struct StageWork {
  std::string processor = "cpu";     // stages of one name share it
  const LayerProbe* layer = nullptr; // measured there
  bool own_processor = false;        // of the device: computing takes nothing from loading and quantizing
  bool rereads = true;               // quantizing reads the source again; not where the device still holds it
  uint32_t threads = 1, at_once = 1; // that load and quantize; sequences computed at a time
  uint32_t layers = 0, group = 0;    // of the stage; loaded together (all of them: nothing is streamed)
  bool room_for_two = false;         // groups: the next one loads while one computes
  bool cuts_kept = false;            // hidden states between groups stay in memory, and are written only where a redo would be long
  double passes = 0;                 // sequences of the measured length through one layer each, to be computed
  uint32_t evict_layers = 0;         // to be quantized
  uint64_t load_besides = 0;         // bytes to load beside layers: the embedding
  uint64_t copy_bytes = 0;           // to be copied through: embedding and head
  bool copies_early = false;         // beside computing, where there are groups
  uint64_t cut_bytes = 0;            // hidden states of all samples at one boundary between groups
};

enum class SourcePages : uint8_t { kCached, kPerhaps, kOnDisk };   // where the source's bytes will be found

struct JobWork {
  std::vector<StageWork> stages;
  uint32_t cores = 1;
  SourcePages source = SourcePages::kPerhaps;
  Seconds checked;                   // of the check: what is known of it already
  uint64_t scan_bytes = 0, scan_largest_file = 0;   // that the check will read: whole files, hashed and looked through; 0: no more
  uint32_t scan_threads = 1;
  uint64_t merge_bytes = 0;
  uint32_t merge_threads = 1, merge_files = 1;
};

struct PhaseTimes {
  Seconds check, load, calibrate, evict, merge;
  Seconds total() const { return check + load + calibrate + evict + merge; }
  // By the names that reports use, in order of the work.
  std::vector<std::pair<std::string, Seconds>> phases() const {
    return {{"check", check}, {"load", load}, {"calibrate", calibrate}, {"evict", evict}, {"merge", merge}};
  }
};

// Precondition: every stage has a layer that was measured.
PhaseTimes EstimateTimes(const JobWork& work, const DiskProbe& disk);

// {"load": {"low_ms", "high_ms"}, ...} of the phases that take any time.
Json PhaseTimesJson(const PhaseTimes& times);
std::string FormatSeconds(double seconds);     // "0.8 s", "42 s", "1 min 40 s"
std::string FormatRange(const Seconds& s);     // "1 min 40 s to 2 min 10 s"; one of them where both read the same

}  // namespace holdfast
