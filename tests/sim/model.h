// SPDX-License-Identifier: Apache-2.0
//
// A very small model and a job on it, in the simulated directory; and what a worker computes: a pure function, the same on every node and
// whatever the stages are. Layer by layer, so that it cannot depend on where the model is cut.
#pragma once

#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/records/records.h"

namespace holdfast::sim {

struct JobShape {
  uint32_t layers = 2, samples = 3;
  std::vector<uint32_t> cut;                 // layers of each stage; empty: the coordinator cuts
  uint32_t skip = 0;                         // so many samples may be left out
  std::vector<uint32_t> without = {};        // of the samples, those that the calibration set does not even have
  friend auto operator<=>(const JobShape&, const JobShape&) = default;
};

inline constexpr const char* kRunDir = "/nfs/run";
inline constexpr const char* kSourceDir = "/nfs/models/small";
inline constexpr const char* kOutDir = "/nfs/out/small-nvfp4";
inline constexpr const char* kNumerics = "cpu/bf16/sim/libtorch-0";

// Writes the source directory.
void MakeSource(FileSystem& fs, const JobShape& shape);

struct NewJob {
  JobSpec spec;
  Plan plan;
  std::vector<Record> records;               // for slot 0 of the job stream, beside the claim
};
NewJob DescribeJob(FileSystem& fs, const JobShape& shape, const Nonce& uuid);

// Hidden states that enter layer 0, and what one layer makes of them, with the amax of its sites.
Bytes Embed(const std::vector<int32_t>& tokens, uint64_t hidden);
struct LayerResult {
  Bytes hidden;
  std::vector<float> amax;
};
LayerResult ComputeLayer(const Bytes& hidden, uint32_t layer, size_t sites);

}  // namespace holdfast::sim
