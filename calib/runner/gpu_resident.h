// SPDX-License-Identifier: Apache-2.0
//
// The weights of a range on a GPU, as eviction takes them. In builds with CUDA (HOLDFAST_HAVE_CUDA).
#pragma once

#include <memory>

#include "calib/runner/weights.h"
#include "export/shard/evict.h"

namespace holdfast {

// `weights`: outlives it.
std::unique_ptr<ResidentWeights> HeldOnGpu(const RangeWeights& weights, int device, std::shared_ptr<DeviceSession> session);

}  // namespace holdfast
