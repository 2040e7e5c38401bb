// SPDX-License-Identifier: Apache-2.0
//
// The plan of a job on this machine, as `jobctl plan` and `jobctl run` print it: what each stage does and holds, bytes, and times from what was
// measured of one layer and of the disk. Nothing that is planned here changes a byte of the result, and no run depends on it.
#pragma once

#include <atomic>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "jobctl/cost_model.h"
#include "jobctl/preflight.h"
#include "jobctl/probe_cache.h"
#include "ledger/base/clock.h"

namespace holdfast {

// What is planned.
struct PlanSubject {
  const DecoderSpec* decoder = nullptr;
  const Plan* plan = nullptr;
  const JobSpec* job = nullptr;
  const std::vector<std::vector<int32_t>>* tokens = nullptr;   // by sample
  const RunState* done = nullptr;    // of a job that was begun before; null: nothing is done
  const Device* device = nullptr;    // the first of `devices`
  const std::vector<Device>* devices = nullptr;
  uint32_t threads = 1;
  std::string run_dir;
  uint64_t scan_bytes = 0;           // of the source, that the check will read; 0: it is over
  uint64_t checked_ms = 0;           // what the check took so far
};

// Memory of a stage by where it lies.
struct MemoryParts {
  uint64_t host_bytes = 0, device_bytes = 0;
};
MemoryParts PartsOf(const ResourcePlan::Stage& stage, const Device& device);

struct RunPlan {
  ResourcePlan resources;
  std::vector<MemoryParts> memory;   // of each stage
  Json json_head;                    // job, samples, device: what the event begins with
  std::string about;                 // "32 samples of up to 512 tokens on cpu (...)"
  uint64_t bytes_read = 0, bytes_written = 0, network_bytes = 0;
  bool rest = false;                 // of what a job that was begun before lacks
  std::optional<PhaseTimes> times;
  std::string times_note;            // where they come from, or why there are none
  std::optional<LayerProbe> layer;   // on the first device
  std::optional<DiskProbe> disk;
  std::vector<std::string> notes;
};

// Everything but times.
RunPlan DescribeRun(const PlanSubject& subject, const ResourcePlan& resources);

// What is to be done, for the cost model. `layers`: measured, by the numerics class of a stage's device; outlives the result.
using MeasuredLayers = std::map<std::string, LayerProbe>;
JobWork WorkOf(const PlanSubject& subject, const ResourcePlan& resources, const MeasuredLayers& layers);

// kMeasureIfLong: only where the job will surely take more than a minute.
enum class Measure : uint8_t { kAlways, kIfLong, kNever };
struct MeasureOptions {
  Measure measure = Measure::kAlways;
  std::string version;                     // of this program
  const std::atomic<bool>* stop = nullptr; // gives measuring up when it turns true
};
// Adds times where something measured is at hand or may be measured now. A failure is a note, never an error.
void AddTimes(FileSystem& fs, const Clock& clock, const ProbeCache& cache, const PlanSubject& subject, const MeasureOptions& options, RunPlan* plan);

// The arithmetic of a job that no machine of this kind does in less: what kIfLong goes by.
double LeastSeconds(const PlanSubject& subject);

std::vector<std::string> RenderRunPlan(const RunPlan& plan);
Json RunPlanJson(const RunPlan& plan);     // {"event": "plan", ...}, see docs/status-json.md
// Puts what was planned beside what was measured, into a report of this attempt: "plan", and "plan_rest" where that was not the whole job.
void AddPlanned(const RunPlan& plan, Json* report);

}  // namespace holdfast
