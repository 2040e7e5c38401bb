// SPDX-License-Identifier: Apache-2.0
//
// Measures one decoder layer of a real model on a real device with the code that will do the work: the loader, the forward pass on as many threads
// as a worker computes on, and eviction. Writes nothing. What the numbers mean is said in calib/model/layer_probe.h; they are this moment's,
// of this machine and what else runs on it.
#pragma once

#include "calib/model/layer_probe.h"
#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"

namespace holdfast {

inline constexpr uint64_t kProbeBudgetNs = 40'000'000'000;   // after which no further pass is begun
inline constexpr uint32_t kProbeSecondsMax = 60;             // after which whoever asked need not believe in an answer any more

// Takes the layer in the middle. Needs the memory of one layer and of `at_once` sequences of so many tokens in flight; the source's pages of that
// layer leave the page cache. Errors: those of loading and computing (unreadable source, kResourceExhausted).
Result<LayerProbe> ProbeLayer(FileSystem& fs, const Clock& clock, const LayerQuestion& question);

}  // namespace holdfast
