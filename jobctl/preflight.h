// SPDX-License-Identifier: Apache-2.0
//
// Everything that is checked before a job begins, so that bad input is refused while nothing has been started: the model, its
// weights, the calibration set, space and memory.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "calib/model/decoder.h"
#include "calib/model/memory_plan.h"
#include "daemon/core/cluster.h"
#include "daemon/core/restart_ladder.h"
#include "daemon/node/device.h"
#include "export/format/output_layout.h"
#include "export/format/safetensors.h"
#include "jobctl/options.h"
#include "ledger/base/file_system.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

struct NewJob {
  JobSpec spec;
  Plan plan;              // stages not cut yet
  DecoderSpec decoder;
  std::vector<std::vector<int32_t>> tokens;
};

// Weights up to this size are read whole before the start (digests pinned, NaN and Inf refused); of larger models the headers are
// pinned now, and each tensor is checked by the worker that loads it.
inline constexpr uint64_t kScanBytesMax = 4ull << 30;

// kLater: for a plan, which starts nothing; the weights' headers are looked at all the same. `numerics`: the class that the job is pinned to, or
// kAnyNumerics.
enum class WeightScan : uint8_t { kNow, kLater };
Result<NewJob> PrepareNewJob(FileSystem& fs, const RunOptions& options, const std::string& numerics, uint32_t threads, WeightScan scan = WeightScan::kNow);
// That of a job which these devices work on: theirs, or any where they are of several, as in a cluster of unlike nodes.
std::string NumericsOf(const std::vector<Device>& devices);

// Feature bits of the job's FORMAT.
inline uint32_t FeaturesOf(const JobSpec& job) { return (job.skip_samples > 0 ? kIncompatOmissions : 0) | (job.layout.empty() ? 0 : kIncompatLayout); }

// Refuses a resume whose arguments would change the result, naming the argument and both values.
Status CompareWithJob(FileSystem& fs, const RunOptions& options, const JobSpec& job, const std::vector<Device>& devices);
// Refuses a source that changed since the job began: sizes and headers always, whole files where their time stamps moved.
Status CheckSourceUnchanged(FileSystem& fs, const JobSpec& job, uint32_t threads);

struct ResourcePlan {
  struct Stage {
    StagePlan plan;
    MemoryPlan memory;
    WorkerSize size;
    std::string device = {};
    bool streamed() const { return size.layers < memory.layers; }   // its layers pass through memory in groups
    uint64_t memory_bytes() const { return memory.Total(size.threads, size.window, size.layers, size.cuts); }
  };
  std::vector<Stage> stages;
  uint64_t memory_needed = 0;       // with the sizes chosen
  uint64_t memory_host = 0;         // beside that of a GPU, in the host's; 0 where that is the same
  uint64_t memory_minimum = 0;      // one sample on one thread, one layer at a time, everywhere
  uint64_t memory_allowed = 0;      // --memory, or what is available; of all devices together
  bool tight = false;               // somewhere more is planned than there is
  uint64_t disk_run = 0, disk_out = 0;   // bytes still to be written
};

// How a model is cut where nobody said how: a stage for each device, of equal length where they are alike, else as their speed and memory allow; then a
// device may be left out, and `order` says which remain. kInvalidArgument: a layer fits none of them, and by how much.
struct DeviceCut {
  std::vector<LayerRange> ranges;
  std::vector<Device> order;        // of each range
};
Result<DeviceCut> CutForDevices(const RunOptions& options, const DecoderSpec& decoder, const Plan& plan, uint32_t seq_len, const std::vector<Device>& devices,
                                uint32_t threads);

// As --stages or --shard-layers say, or for the devices that there are; those that get nothing are taken out then.
Result<std::vector<LayerRange>> CutFor(const RunOptions& options, const DecoderSpec& decoder, const Plan& plan, uint32_t seq_len, uint32_t threads,
                                       std::vector<Device>* devices);
uint32_t ThreadsOfStages(const RunOptions& options, uint32_t cores, const std::vector<Device>& devices);

// Stage k works on device k, further ones on the first again, and so on. Chooses threads, window and resident layers of every stage so that all stages on a
// device together stay within its memory, and those on devices that live in the machine's memory within that. --memory is for each device with
// memory of its own, and for the machine. kInvalidArgument with the number when not even the minimum fits an explicit --memory, or a device.
Result<ResourcePlan> PlanResources(const RunOptions& options, const DecoderSpec& decoder, const Plan& plan, const JobSpec& job,
                                   const std::vector<Device>& devices, uint32_t threads);
// Free space of both directories against what is still to be written; kInvalidArgument naming the directory and the bytes that lack.
Status CheckSpace(FileSystem& fs, const ResourcePlan& resources, const std::string& run_dir, const std::string& out);

// --layout as it was given; modelopt where it was not.
Result<OutputLayout> LayoutAsked(const std::optional<std::string>& name);

// The output directory as an absolute path without a trailing slash; the run directory likewise.
std::string AbsolutePath(const std::string& path);

}  // namespace holdfast
