// SPDX-License-Identifier: Apache-2.0
//
// What a submission will ask of the nodes that are known, before anything is written: who would take which layers, memory, bytes, time.
// Pure. The coordinator decides again when the job begins, with the nodes that live then.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "calib/model/decoder.h"
#include "calib/model/memory_plan.h"
#include "daemon/core/placement.h"
#include "jobctl/node_watch.h"

namespace holdfast {

struct PlannedStage {
  LayerRange layers;
  std::string node;                       // "" = whichever comes; a device of a node that has several is "node/cuda:1"
  uint64_t memory_bytes = 0;              // at least: one sample on one thread
  uint64_t memory_has = 0;                // of the node, 0 = not known. Of a GPU with memory of its own both are that
  bool streamed = false;                  // its layers do not fit there all at once
};
struct JobPlan {
  std::vector<PlannedStage> stages;
  uint64_t bytes_read = 0, bytes_written = 0;
  uint64_t network_bytes = 0;             // hidden states from node to node; over a network file system the others come on top
  std::optional<uint64_t> seconds;        // rough; nullopt where no node's speed is known
};

struct JobDemand {                        // what decides the above
  const DecoderSpec* decoder = nullptr;
  const Plan* plan = nullptr;
  uint32_t samples = 0, seq_len = 0;
  uint64_t shard_bytes = 0;
};

NodeView ViewOf(const NodeStatus& node);

// The split that was asked for, or the coordinator's (`ranges` empty). `on`: the node of each range, or empty. `nodes` may be empty: then
// one stage, or the ranges, without nodes. kInvalidArgument, saying by how much, when a stage fits no node (or not the one asked for).
Result<JobPlan> PlanJob(const JobDemand& demand, const std::vector<LayerRange>& ranges, const std::vector<std::string>& on,
                        const std::vector<NodeView>& nodes);

// Floating point operations of one sample of `tokens` through `layers` decoder layers.
double FlopsOf(const DecoderSpec& spec, uint32_t layers, uint64_t tokens);

// Of a shared directory behind gigabit Ethernet: what reading and writing are reckoned with.
inline constexpr uint64_t kSharedBytesPerSecond = 110'000'000;

std::string RenderPlan(const JobPlan& plan, uint32_t samples, uint32_t seq_len);

}  // namespace holdfast
