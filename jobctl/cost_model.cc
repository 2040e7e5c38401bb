// SPDX-License-Identifier: Apache-2.0
#include "jobctl/cost_model.h"

#include <algorithm>
#include <cstdio>

#include "ledger/base/units.h"

namespace holdfast {
namespace {

constexpr uint64_t kRateMax = 1'000'000'000'000'000;

// What is not in the model, as factors: found by comparing plans with runs (docs/adr/0026).
constexpr Seconds kOffCheck{0.7, 1.6}, kOffLoad{0.6, 1.8}, kOffCalibrate{0.85, 1.1}, kOffEvict{0.7, 1.6}, kOffMerge{0.8, 1.5};
// Work of the merge on one byte, in SHA-256 of one thread: it is hashed twice at most, two messages at a time where that helps, and decoded, summed, copied.
constexpr Seconds kMergeHashes{1.6, 3.2};
constexpr Seconds kMergeAround{0.1, 0.3};       // its claim, the small files, the last words: in the same comparison, whatever the size
constexpr uint32_t kMergeThreadsMax = 8;       // four files, two threads each

Seconds Times(Seconds s, Seconds off) { return {s.low * off.low, s.high * off.high}; }
double S(uint64_t ns) { return static_cast<double>(ns) / 1e9; }
double Over(uint64_t bytes, uint64_t bytes_per_s) { return static_cast<double>(bytes) / static_cast<double>(std::max<uint64_t>(1, bytes_per_s)); }

// One stage's measured layer, in seconds.
struct Layer {
  Seconds forward, load, evict;
  double load_cpu = 0, evict_cpu = 0, per_byte_load = 0, per_byte_copy = 0;
};

Layer Measured(const StageWork& w, SourcePages source, const DiskProbe& disk) {
  const LayerProbe& p = *w.layer;
  Layer m;
  const auto& f = p.forward_ns;
  m.forward = {S(f.front()), S(f[f.size() - 1 - f.size() / 4])};   // nobody disturbed the fastest
  m.load_cpu = S(p.load_cpu_ns);
  m.evict_cpu = S(p.evict_cpu_ns);
  // The tensors of several layers keep all threads busy to the end, those of one do not.
  const double warm = std::min(S(p.load_ns), m.load_cpu / w.threads);
  const double from_disk = std::max(0.0, S(p.load_cold_ns) - S(p.load_ns));
  m.load.low = source == SourcePages::kOnDisk ? warm + from_disk : warm;
  m.load.high = S(p.load_ns) + (source == SourcePages::kCached ? 0 : from_disk);
  const double packs = Over(p.evict_bytes, disk.write_bytes_per_s);
  const bool again = w.rereads && source != SourcePages::kCached;
  m.evict.low = std::max(std::min(S(p.evict_ns), m.evict_cpu / w.threads), packs) + (again && source == SourcePages::kOnDisk ? from_disk : 0);
  m.evict.high = S(p.evict_ns) + packs + (again ? from_disk : 0);
  m.per_byte_load = S(p.load_ns) / static_cast<double>(p.layer_bytes);
  m.per_byte_copy = S(p.copy_ns) / static_cast<double>(p.copy_bytes);
  return m;
}

uint32_t Groups(const StageWork& w) { return w.passes <= 0 ? 0 : (w.layers + w.group - 1) / std::max(1u, w.group); }

// Computing alone, with nothing beside it.
Seconds Computing(const JobWork& job, const std::vector<Layer>& layers, const std::string& processor) {
  Seconds sum, slowest, way;
  uint32_t threads = 0, at_once = 1;
  for (size_t i = 0; i < job.stages.size(); ++i) {
    const StageWork& w = job.stages[i];
    if (w.processor != processor || w.passes <= 0) continue;
    const Seconds all = w.passes * layers[i].forward;
    sum = sum + all;
    slowest = {std::max(slowest.low, all.low / w.at_once), std::max(slowest.high, all.high / w.at_once)};
    way = way + w.layers * layers[i].forward;      // one sample: until the last stage has the first one, and while the last one is alone
    threads += w.at_once;
    at_once = std::max(at_once, w.own_processor ? w.at_once : std::min(threads, std::max(job.cores, w.at_once)));
  }
  Seconds time{std::max(sum.low / at_once, slowest.low), std::max(sum.high / at_once, slowest.high)};
  if (sum.high > 0) time.high += way.high;
  return time;
}

// Embedding and head: hashed and compressed, chunks side by side.
Seconds Copying(const StageWork& w, const Layer& m) {
  const double copied = static_cast<double>(w.copy_bytes) * m.per_byte_copy;
  return {copied / w.threads, copied};
}

// What a streamed stage does beside its computing, or between it: the groups behind the first are loaded, those before the last quantized, and the
// hidden states between them written and read.
Seconds Streaming(const StageWork& w, const Layer& m, Seconds computing, const DiskProbe& disk) {
  const uint32_t groups = Groups(w);
  if (groups < 2) return computing;
  const double behind = static_cast<double>(w.layers - std::min(w.layers, w.group));
  const double evicted = std::min<double>(w.evict_layers, behind);
  const Seconds loads = behind * m.load, evicts = evicted * m.evict;
  const uint64_t cuts = w.cut_bytes * (groups - 1);
  const double written = std::max(Over(cuts, disk.write_bytes_per_s), static_cast<double>(cuts) * m.per_byte_copy), read = w.cuts_kept ? 0 : Over(cuts, disk.read_bytes_per_s);
  Seconds beside = w.room_for_two ? evicts + loads : evicts;
  if (w.copies_early) beside = beside + Copying(w, m);
  const Seconds between = w.room_for_two ? Seconds{} : loads;
  Seconds time{std::max({computing.low, beside.low, w.cuts_kept ? 0 : written}), 0};
  time.high = w.own_processor ? std::max(computing.high, beside.high) + written + read : computing.high + beside.high + written + read;
  return time + between;
}

Seconds Calibrating(const JobWork& job, const std::vector<Layer>& layers, const DiskProbe& disk) {
  std::map<std::string, Seconds> processors;
  for (const StageWork& w : job.stages) {
    if (!processors.contains(w.processor)) processors[w.processor] = Computing(job, layers, w.processor);
  }
  Seconds longest;
  for (const auto& [processor, computing] : processors) {
    Seconds time = computing;
    for (size_t i = 0; i < job.stages.size(); ++i) {
      if (job.stages[i].processor == processor) time = Streaming(job.stages[i], layers[i], time, disk);
    }
    longest = {std::max(longest.low, time.low), std::max(longest.high, time.high)};
  }
  return longest;
}

// The first group of every stage, all at the same time on the same processors; and the program itself.
Seconds Loading(const JobWork& job, const std::vector<Layer>& layers) {
  Seconds time;
  uint32_t programs = 0;
  double start = 0;
  for (size_t i = 0; i < job.stages.size(); ++i) {
    const StageWork& w = job.stages[i];
    if (w.passes <= 0) continue;
    const double besides = static_cast<double>(w.load_besides) * layers[i].per_byte_load;
    time = time + std::min(w.group, w.layers) * layers[i].load + Seconds{besides / w.threads, besides};
    start = std::max(start, S(w.layer->start_ns));
    ++programs;
  }
  const double turns = static_cast<double>(programs + job.cores - 1) / std::max(1u, job.cores);
  return time + Seconds{start, programs == 0 ? start : start * std::max(1.0, turns)};
}

// What is left when nothing is to be calibrated any more: of a streamed stage the last group, of others all; and embedding and head.
Seconds Evicting(const JobWork& job, const std::vector<Layer>& layers) {
  Seconds time;
  for (size_t i = 0; i < job.stages.size(); ++i) {
    const StageWork& w = job.stages[i];
    const bool streamed = Groups(w) >= 2;
    time = time + (streamed ? std::min(w.evict_layers, w.group) : w.evict_layers) * layers[i].evict;
    if (!streamed || !w.copies_early) time = time + Copying(w, layers[i]);
  }
  return time;
}

Seconds Merging(const JobWork& job, const DiskProbe& disk) {
  const uint32_t threads = std::max(1u, std::min({job.merge_threads, 2 * job.merge_files, kMergeThreadsMax}));
  const double hashed = Over(job.merge_bytes, disk.hash_bytes_per_s) / threads;
  const double written = Over(job.merge_bytes, disk.write_bytes_per_s), read = Over(job.merge_bytes, disk.read_bytes_per_s);
  return kMergeAround + Seconds{std::max({kMergeHashes.low * hashed, written, read}), kMergeHashes.high * hashed + written + read};
}

Seconds Checking(const JobWork& job, const std::vector<Layer>& layers, const DiskProbe& disk) {
  if (job.scan_bytes == 0 || layers.empty()) return {};
  const LayerProbe& p = *job.stages[0].layer;
  const double bytes = static_cast<double>(job.scan_bytes), per_layer = bytes / static_cast<double>(p.layer_bytes);
  const double cpu = per_layer * layers[0].load_cpu, alone = Over(job.scan_largest_file, disk.hash_bytes_per_s);
  const double from_disk = std::max(0.0, S(p.load_cold_ns) - S(p.load_ns)) * per_layer;
  return {std::max(cpu / job.scan_threads, alone), std::max(cpu, alone) + from_disk};   // nobody knows what of it lies in the page cache yet
}

Result<uint64_t> Rate(const Json& j, const char* key, const std::string& what) {
  HOLDFAST_ASSIGN(const uint64_t rate, GetUint(j, key, what));
  if (rate == 0 || rate > kRateMax) return InvalidArgument(what + ": " + key + " is no rate");
  return rate;
}

}  // namespace

Json DiskProbe::ToJson() const {
  return {{"write_bytes_per_s", write_bytes_per_s}, {"read_bytes_per_s", read_bytes_per_s}, {"hash_bytes_per_s", hash_bytes_per_s}};
}

Result<DiskProbe> DiskProbe::FromJson(const Json& j, const std::string& what) {
  DiskProbe d;
  HOLDFAST_ASSIGN(d.write_bytes_per_s, Rate(j, "write_bytes_per_s", what));
  HOLDFAST_ASSIGN(d.read_bytes_per_s, Rate(j, "read_bytes_per_s", what));
  HOLDFAST_ASSIGN(d.hash_bytes_per_s, Rate(j, "hash_bytes_per_s", what));
  return d;
}

PhaseTimes EstimateTimes(const JobWork& work, const DiskProbe& disk) {
  std::vector<Layer> layers;
  for (const StageWork& w : work.stages) layers.push_back(Measured(w, work.source, disk));
  PhaseTimes t;
  t.check = work.checked + Times(Checking(work, layers, disk), kOffCheck);
  t.load = Times(Loading(work, layers), kOffLoad);
  t.calibrate = Times(Calibrating(work, layers, disk), kOffCalibrate);
  t.evict = Times(Evicting(work, layers), kOffEvict);
  t.merge = Times(Merging(work, disk), kOffMerge);
  return t;
}

Json PhaseTimesJson(const PhaseTimes& times) {
  Json j = Json::object();
  for (const auto& [phase, s] : times.phases()) {
    if (s.high > 0) j[phase] = {{"low_ms", static_cast<uint64_t>(s.low * 1000)}, {"high_ms", static_cast<uint64_t>(s.high * 1000)}};
  }
  return j;
}

std::string FormatSeconds(double seconds) {
  if (seconds >= 9.95) return FormatDuration(static_cast<uint64_t>(seconds + 0.5));
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", seconds);
  return text;
}

std::string FormatRange(const Seconds& s) {
  const std::string low = FormatSeconds(s.low), high = FormatSeconds(s.high);
  return low == high ? low : low + " to " + high;
}

}  // namespace holdfast
