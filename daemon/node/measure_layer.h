// SPDX-License-Identifier: Apache-2.0
//
// Asks holdfast-worker to measure one layer of a model (whoever includes this has no torch).
#pragma once

#include <atomic>

#include "calib/model/layer_probe.h"
#include "ledger/base/clock.h"

namespace holdfast {

// Takes seconds, a minute at most; kStopped soon after `stop` turns true. Errors say why there is no measure; nothing depends on one.
Result<LayerProbe> MeasureLayer(const Clock& clock, const LayerQuestion& question, const std::atomic<bool>* stop = nullptr);

}  // namespace holdfast
