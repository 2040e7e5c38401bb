// SPDX-License-Identifier: Apache-2.0
#include "jobctl/run_plan.h"

#include <algorithm>
#include <thread>

#include "daemon/node/measure_layer.h"
#include "daemon/node/process.h"
#include "export/shard/output_plan.h"
#include "jobctl/disk_probe.h"
#include "jobctl/job_plan.h"

namespace holdfast {
namespace {

constexpr double kLongSeconds = 60;                          // what is shorter is done before its plan would be worth the measuring
constexpr double kThreadFlopsMost = 200e9, kGpuFlopsMost = 1e15, kReadMost = 5e9;   // beyond what one does with this

// The one place that knows how a worker cuts its stage into groups, and how many samples it computes at a time.
Grouping GroupsOf(const ResourcePlan::Stage& s) { return GroupLayers(s.size.layers, s.memory.layers, GroupsAtOnceMax(s.memory.processor)); }
uint32_t GroupOf(const ResourcePlan::Stage& s) { return GroupsOf(s).layers; }
uint32_t AtOnce(const ResourcePlan::Stage& s) { return std::max(1u, SamplesAtOnce(s.memory.processor, std::min(s.size.threads, s.size.window))); }

bool HasOwnMemory(const Device& device) { return device.memory_bytes > 0; }

std::string Layers(const StagePlan& s) { return std::to_string(s.first_layer) + "-" + std::to_string(s.last_layer - 1); }

uint64_t BytesOf(const UnitPlan& unit) {
  uint64_t bytes = 0;
  for (const TensorPlan& t : unit.tensors) bytes += t.bytes;
  return bytes;
}

bool IsQuantized(const UnitPlan& unit, const TensorPlan& t) {
  return std::any_of(unit.sites.begin(), unit.sites.end(), [&](const SitePlan& s) { return t.name == s.module + ".weight"; });
}

bool IsEvicted(const PlanSubject& subject, uint32_t unit) { return subject.done != nullptr && subject.done->Layer(unit) != nullptr; }
bool IsLeftOut(const PlanSubject& subject, uint32_t sample) { return subject.done != nullptr && subject.done->Omitted(sample); }

uint32_t LongestOf(const PlanSubject& subject) {
  size_t longest = 1;
  for (const auto& sample : *subject.tokens) longest = std::max(longest, sample.size());
  return static_cast<uint32_t>(longest);
}

// Sequences of the longest sample's length through one layer each, by arithmetic, that these layers still lack.
double PassesOf(const PlanSubject& subject, uint32_t first, uint32_t last) {
  const double whole = FlopsOf(*subject.decoder, 1, LongestOf(subject));
  double passes = 0;
  for (uint32_t sample = 0; sample < subject.tokens->size(); ++sample) {
    if (IsLeftOut(subject, sample)) continue;
    uint32_t lacks = last - first;
    for (uint32_t layer = first; subject.done != nullptr && layer < last; ++layer) lacks -= subject.done->Sample(sample, layer) != nullptr;
    passes += lacks * FlopsOf(*subject.decoder, 1, (*subject.tokens)[sample].size()) / whole;
  }
  return passes;
}

const Device& DeviceOf(const PlanSubject& subject, const ResourcePlan::Stage& stage) {
  const auto it = std::find_if(subject.devices->begin(), subject.devices->end(), [&](const Device& d) { return d.name == stage.device; });
  return it == subject.devices->end() ? *subject.device : *it;
}

StageWork StageWorkOf(const PlanSubject& subject, const ResourcePlan::Stage& stage, const LayerProbe& layer) {
  const Plan& plan = *subject.plan;
  StageWork w;
  const Device& device = DeviceOf(subject, stage);
  w.processor = device.is_cpu() ? "cpu" : device.name;   // several that are the CPU share its cores
  w.layer = &layer;
  w.own_processor = HasOwnMemory(device);
  w.rereads = !HasOwnMemory(device);
  w.layers = stage.plan.last_layer - stage.plan.first_layer;
  w.group = GroupOf(stage);
  w.room_for_two = GroupsOf(stage).at_once > 1;
  w.copies_early = GroupsOf(stage).at_once > 2;
  w.cuts_kept = stage.size.cuts >= subject.job->samples;
  w.threads = std::max(1u, stage.size.threads);
  w.at_once = AtOnce(stage);
  w.passes = PassesOf(subject, stage.plan.first_layer, stage.plan.last_layer);
  w.cut_bytes = static_cast<uint64_t>(subject.job->samples) * LongestOf(subject) * plan.hidden_size * 2;
  for (const UnitPlan& unit : plan.units) {
    const bool layer_of_it = unit.id >= stage.plan.first_layer && unit.id < stage.plan.last_layer && unit.id < plan.layers;
    const bool besides = unit.id == plan.layers ? stage.plan.first_layer == 0 : unit.id > plan.layers && stage.plan.last_layer == plan.layers;
    if (besides && unit.id == plan.layers) w.load_besides = BytesOf(unit);
    if (IsEvicted(subject, unit.id)) continue;
    w.evict_layers += layer_of_it;
    if (besides) w.copy_bytes += BytesOf(unit);
  }
  return w;
}

// The check reads what it may; later phases find it in the page cache if it stays there beside the workers.
SourcePages PagesOf(const PlanSubject& subject, const ResourcePlan& resources) {
  uint64_t source = 0;
  for (const SourceFile& f : subject.job->weights) source += f.size;
  const uint64_t host = HasOwnMemory(*subject.device) ? 0 : resources.memory_needed;
  if (source + host > MemAvailableBytes()) return source > MemTotalBytes() ? SourcePages::kOnDisk : SourcePages::kPerhaps;
  return subject.done == nullptr && source <= kScanBytesMax ? SourcePages::kCached : SourcePages::kPerhaps;
}

Json LayerQuestionKey(const PlanSubject& subject, const LayerQuestion& q, const std::string& numerics, const std::string& version) {
  const DecoderSpec& d = *subject.decoder;
  const std::vector<TensorPlan>& tensors = subject.plan->units.front().tensors;
  return {{"what", "layer"}, {"version", version}, {"device", q.device}, {"numerics", numerics}, {"tokens", q.tokens}, {"threads", q.threads}, {"at_once", q.at_once},
          {"hidden", d.hidden}, {"intermediate", d.intermediate}, {"heads", d.heads}, {"kv_heads", d.kv_heads}, {"head_dim", d.head_dim},
          {"vocab", d.vocab}, {"dtype", tensors.empty() ? "" : DTypeName(tensors.front().dtype)}};
}

std::string NearestThatExists(FileSystem& fs, std::string path) {
  while (path.size() > 1 && !fs.Stat(path).ok()) path = DirName(path);
  return path;
}

// Asks the cache first; keeps what had to be measured. Collects notes.
class Measurer {
 public:
  Measurer(FileSystem& fs, const Clock& clock, const ProbeCache& cache, const MeasureOptions& options, std::vector<std::string>* notes)
      : fs_(fs), clock_(clock), cache_(cache), options_(options), notes_(notes) {}

  bool measured_now() const { return measured_; }

  // Of `device` and all that are like it.
  std::optional<LayerProbe> Layer(const PlanSubject& subject, const ResourcePlan& resources, const Device& device) {
    LayerQuestion q{.source = subject.job->source, .device = device.name, .tokens = LongestOf(subject), .threads = 1, .at_once = 1};
    for (const auto& s : resources.stages) {
      if (DeviceOf(subject, s).numerics != device.numerics) continue;
      q.threads = std::max(q.threads, s.size.threads);
      q.at_once = std::max(q.at_once, AtOnce(s));
    }
    return Get<LayerProbe>(LayerQuestionKey(subject, q, device.numerics, options_.version), [&] { return MeasureLayer(clock_, q, options_.stop); });
  }
  std::optional<DiskProbe> Disk(const std::string& run_dir) {
    const std::string dir = NearestThatExists(fs_, run_dir);
    const auto info = fs_.Stat(dir);
    const auto space = fs_.Space(dir);
    if (!info.ok() || !space.ok()) {
      why_ = dir + ": " + (info.ok() ? space.error() : info.error()).message;
      return std::nullopt;
    }
    const Json key{{"what", "disk"}, {"version", options_.version}, {"filesystem", info->device}, {"total_bytes", space->total_bytes}};
    return Get<DiskProbe>(key, [&] { return ProbeDisk(fs_, clock_, dir); });
  }
  const std::string& why() const { return why_; }

 private:
  template <class T, class F>
  std::optional<T> Get(const Json& key, F measure) {
    const ProbeCache::Found found = cache_.Find(key);
    if (!found.note.empty()) notes_->push_back(found.note);
    if (found.answer) {
      const auto known = T::FromJson(*found.answer, cache_.PathOf(key));
      if (known.ok()) return *known;
      notes_->push_back("not used: " + known.error().message);
    }
    if (options_.measure == Measure::kNever) {
      why_ = "nothing measured is at hand; `jobctl plan` measures";
      return std::nullopt;
    }
    const auto now = measure();
    if (!now.ok()) {
      why_ = now.error().message;
      return std::nullopt;
    }
    measured_ = true;
    if (const Status kept = cache_.Keep(key, now->ToJson()); !kept.ok()) notes_->push_back("what was measured is not kept: " + kept.error().message);
    return *now;
  }

  FileSystem& fs_;
  const Clock& clock_;
  const ProbeCache& cache_;
  const MeasureOptions& options_;
  std::vector<std::string>* notes_;
  std::string why_;
  bool measured_ = false;
};

std::string RenderTimes(const RunPlan& plan) {
  std::string text;
  for (const auto& [phase, s] : plan.times->phases()) {
    if (s.high > 0) text += (text.empty() ? "" : ", ") + phase + " " + FormatRange(s);
  }
  return "time" + std::string(plan.rest ? " for the rest" : "") + ": " + FormatRange(plan.times->total()) + " (" + text + "), " + plan.times_note;
}

}  // namespace

MemoryParts PartsOf(const ResourcePlan::Stage& stage, const Device& device) {
  if (!HasOwnMemory(device)) return {.host_bytes = stage.memory_bytes(), .device_bytes = 0};
  return {.host_bytes = stage.memory.Host(stage.size.threads, stage.size.window, stage.size.cuts), .device_bytes = stage.memory_bytes()};
}

RunPlan DescribeRun(const PlanSubject& subject, const ResourcePlan& resources) {
  const JobSpec& job = *subject.job;
  RunPlan p;
  p.resources = resources;
  p.rest = subject.done != nullptr;
  p.json_head = {{"event", "plan"}, {"samples", job.samples}, {"seq_len", job.seq_len}, {"device", NamesOf(*subject.devices)}, {"numerics", NumericsOf(*subject.devices)}};
  p.about = std::to_string(job.samples) + " samples of up to " + std::to_string(job.seq_len) + " tokens on " + NamesOf(*subject.devices) + " (" + NumericsOf(*subject.devices) + ")";
  const uint64_t output = PlanOutput(*subject.plan, job.shard_bytes).total_size;
  const LayerProbe nothing;
  uint64_t cuts = 0;
  for (const auto& s : resources.stages) {
    p.memory.push_back(PartsOf(s, DeviceOf(subject, s)));
    const StageWork w = StageWorkOf(subject, s, nothing);
    if (w.passes > 0) cuts += w.cut_bytes * ((w.layers + w.group - 1) / w.group - 1);
    if (w.passes > 0 && s.plan.last_layer != subject.plan->layers) cuts += w.cut_bytes;
    for (const UnitPlan& unit : subject.plan->units) {
      const bool loaded = unit.id < subject.plan->layers ? unit.id >= s.plan.first_layer && unit.id < s.plan.last_layer : unit.id == subject.plan->layers && s.plan.first_layer == 0;
      if (loaded && w.passes > 0) p.bytes_read += BytesOf(unit);
    }
  }
  uint64_t packs = 0;
  for (const UnitPlan& unit : subject.plan->units) {
    if (IsEvicted(subject, unit.id)) continue;
    for (const OutputTensor& t : OutputTensorsOf(*subject.plan, unit)) packs += t.info.bytes;
    for (const TensorPlan& t : unit.tensors) p.bytes_read += HasOwnMemory(*subject.device) && IsQuantized(unit, t) ? 0 : t.bytes;
  }
  p.bytes_read += subject.scan_bytes + cuts + output;      // the check, hidden states, packs by the merge
  p.bytes_written = packs + cuts + output;
  return p;
}

JobWork WorkOf(const PlanSubject& subject, const ResourcePlan& resources, const MeasuredLayers& layers) {
  JobWork work;
  for (const auto& s : resources.stages) work.stages.push_back(StageWorkOf(subject, s, layers.at(DeviceOf(subject, s).numerics)));
  work.cores = std::max(1u, std::thread::hardware_concurrency());
  work.source = PagesOf(subject, resources);
  work.checked = {static_cast<double>(subject.checked_ms) / 1000, static_cast<double>(subject.checked_ms) / 1000};
  work.scan_bytes = subject.scan_bytes;
  for (const SourceFile& f : subject.job->weights) work.scan_largest_file = std::max(work.scan_largest_file, f.size);
  work.scan_threads = subject.threads;
  const OutputPlan output = PlanOutput(*subject.plan, subject.job->shard_bytes);
  work.merge_bytes = output.total_size;
  work.merge_threads = subject.threads;
  work.merge_files = static_cast<uint32_t>(std::max<size_t>(1, output.files.size()));
  return work;
}

double LeastSeconds(const PlanSubject& subject) {
  const double flops = PassesOf(subject, 0, subject.plan->layers) * FlopsOf(*subject.decoder, 1, LongestOf(subject));
  double bytes = 0;
  for (const UnitPlan& unit : subject.plan->units) bytes += IsEvicted(subject, unit.id) ? 0 : static_cast<double>(BytesOf(unit));
  return flops / (HasOwnMemory(*subject.device) ? kGpuFlopsMost : kThreadFlopsMost * subject.threads) + bytes / kReadMost;
}

void AddTimes(FileSystem& fs, const Clock& clock, const ProbeCache& cache, const PlanSubject& subject, const MeasureOptions& options, RunPlan* plan) {
  MeasureOptions how = options;
  const bool brief = options.measure == Measure::kIfLong && LeastSeconds(subject) < kLongSeconds;
  if (brief) how.measure = Measure::kNever;
  Measurer measurer(fs, clock, cache, how, &plan->notes);
  MeasuredLayers layers;
  bool all = true;
  for (size_t i = 0; all && i < plan->resources.stages.size(); ++i) {
    const Device& device = DeviceOf(subject, plan->resources.stages[i]);
    if (layers.contains(device.numerics)) continue;
    const auto layer = measurer.Layer(subject, plan->resources, device);
    all = layer.has_value();
    if (all) layers[device.numerics] = *layer;
    if (i == 0) plan->layer = layer;
  }
  if (all) plan->disk = measurer.Disk(subject.run_dir);
  if (!plan->disk) {
    plan->times_note = "time not measured: " + (brief ? std::string("a short job; `jobctl plan` measures") : measurer.why());
    return;
  }
  plan->times = EstimateTimes(WorkOf(subject, plan->resources, layers), *plan->disk);
  plan->times_note = measurer.measured_now() ? "from one layer and the disk, measured just now" : "from one layer and the disk, measured before";
}

std::vector<std::string> RenderRunPlan(const RunPlan& plan) {
  const ResourcePlan& r = plan.resources;
  std::vector<std::string> lines;
  for (const auto& s : r.stages) {
    const MemoryParts& m = plan.memory[&s - r.stages.data()];
    lines.push_back("stage " + std::to_string(s.plan.stage.value) + ": layers " + Layers(s.plan) + (s.device == "cpu" || r.stages.size() == 1 ? "" : " on " + s.device) + (s.streamed() ? ", streamed " + std::to_string(GroupOf(s)) + " at a time" : ", resident") +
                    ", " + std::to_string(s.size.threads) + " threads, " + std::to_string(s.size.window) + " samples in flight, at most " +
                    (m.device_bytes > 0 ? FormatSize(m.device_bytes) + " of the device and " + FormatSize(m.host_bytes) + " of the host" : FormatSize(m.host_bytes)));
  }
  lines.push_back("plan: " + plan.about + ", memory " + FormatSize(r.memory_needed) + " of " + FormatSize(r.memory_allowed) +
                  (r.memory_host > 0 ? " and " + FormatSize(r.memory_host) + " of the host's" : "") + ", disk " + FormatSize(r.disk_run) +
                  " for the ledger and " + FormatSize(r.disk_out) + " for the result");
  lines.push_back("bytes: " + FormatSize(plan.bytes_read) + " to read, " + FormatSize(plan.bytes_written) + " to write, " + FormatSize(plan.network_bytes) + " between nodes");
  lines.push_back(plan.times ? RenderTimes(plan) : plan.times_note);
  for (const std::string& note : plan.notes) lines.push_back("note: " + note);
  if (r.tight) lines.push_back("warning: less memory is available than planned; workers may be killed and restarted smaller");
  return lines;
}

void AddPlanned(const RunPlan& plan, Json* report) {
  if (!plan.times) return;
  (*report)["plan"] = PhaseTimesJson(*plan.times);
  if (plan.rest) (*report)["plan_rest"] = true;
}

Json RunPlanJson(const RunPlan& plan) {
  const ResourcePlan& r = plan.resources;
  Json stages = Json::array();
  for (const auto& s : r.stages) {
    stages.push_back({{"stage", s.plan.stage.value}, {"first_layer", s.plan.first_layer}, {"last_layer", s.plan.last_layer}, {"threads", s.size.threads},
                      {"window", s.size.window}, {"device", s.device}, {"streamed", s.streamed()}, {"layers_at_once", s.size.layers}, {"cuts_in_memory", s.streamed() ? s.size.cuts : 0}, {"group_layers", GroupOf(s)},
                      {"memory_bytes", s.memory_bytes()}, {"host_bytes", plan.memory[&s - r.stages.data()].host_bytes},
                      {"device_bytes", plan.memory[&s - r.stages.data()].device_bytes}});
  }
  Json j = plan.json_head;
  j["stages"] = std::move(stages);
  j["memory_bytes"] = r.memory_needed;
  j["memory_host_bytes"] = r.memory_host;
  j["memory_minimum_bytes"] = r.memory_minimum;
  j["memory_allowed_bytes"] = r.memory_allowed;
  j["disk_run_bytes"] = r.disk_run;
  j["disk_out_bytes"] = r.disk_out;
  j["bytes_read"] = plan.bytes_read;
  j["bytes_written"] = plan.bytes_written;
  j["network_bytes"] = plan.network_bytes;
  j["rest"] = plan.rest;
  j["phase_ms"] = plan.times ? PhaseTimesJson(*plan.times) : Json(nullptr);
  j["total_ms"] = nullptr;
  if (plan.times) j["total_ms"] = {{"low_ms", static_cast<uint64_t>(plan.times->total().low * 1000)}, {"high_ms", static_cast<uint64_t>(plan.times->total().high * 1000)}};
  j["times_note"] = plan.times_note;
  j["layer"] = plan.layer ? plan.layer->ToJson() : Json(nullptr);
  j["disk"] = plan.disk ? plan.disk->ToJson() : Json(nullptr);
  j["notes"] = plan.notes;
  return j;
}

}  // namespace holdfast
