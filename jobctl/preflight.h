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
#include "daemon/core/restart_ladder.h"
#include "daemon/node/device.h"
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

// kLater: for a plan, which starts nothing; the weights' headers are looked at all the same.
enum class WeightScan : uint8_t { kNow, kLater };
Result<NewJob> PrepareNewJob(FileSystem& fs, const RunOptions& options, const Device& device, uint32_t threads, WeightScan scan = WeightScan::kNow);

// Feature bits of the job's FORMAT.
inline uint32_t FeaturesOf(const JobSpec& job) { return job.skip_samples > 0 ? kIncompatOmissions : 0; }

// Refuses a resume whose arguments would change the result, naming the argument and both values.
Status CompareWithJob(FileSystem& fs, const RunOptions& options, const JobSpec& job, const Device& device);
// Refuses a source that changed since the job began: sizes and headers always, whole files where their time stamps moved.
Status CheckSourceUnchanged(FileSystem& fs, const JobSpec& job, uint32_t threads);

struct ResourcePlan {
  struct Stage {
    StagePlan plan;
    MemoryPlan memory;
    WorkerSize size;
    bool streamed() const { return size.layers < memory.layers; }   // its layers pass through memory in groups
    uint64_t memory_bytes() const { return memory.Total(size.threads, size.window, size.layers, size.cuts); }
  };
  std::vector<Stage> stages;
  uint64_t memory_needed = 0;       // with the sizes chosen
  uint64_t memory_host = 0;         // beside that of a GPU, in the host's; 0 where that is the same
  uint64_t memory_minimum = 0;      // one sample on one thread, one layer at a time, everywhere
  uint64_t memory_allowed = 0;      // --memory, or what is available
  uint64_t disk_run = 0, disk_out = 0;   // bytes still to be written
};

// Chooses threads, window and resident layers of every stage so that all stages together stay within the memory allowed.
// kInvalidArgument with the number when not even the minimum fits an explicit --memory.
Result<ResourcePlan> PlanResources(const RunOptions& options, const DecoderSpec& decoder, const Plan& plan, const JobSpec& job,
                                   const Device& device, uint32_t threads);
// Free space of both directories against what is still to be written; kInvalidArgument naming the directory and the bytes that lack.
Status CheckSpace(FileSystem& fs, const ResourcePlan& resources, const std::string& run_dir, const std::string& out);

// The output directory as an absolute path without a trailing slash; the run directory likewise.
std::string AbsolutePath(const std::string& path);

}  // namespace holdfast
