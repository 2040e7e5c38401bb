// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/measure_layer.h"

#include <signal.h>

#include "calib/tokens/helper_process.h"
#include "daemon/node/device.h"
#include "ledger/base/file_system.h"
#include "ledger/base/printable.h"

namespace holdfast {
namespace {

Error Failed(const std::string& why) { return {ErrorCode::kTransient, "measuring a layer: " + why}; }

}  // namespace

Result<LayerProbe> MeasureLayer(const Clock& clock, const LayerQuestion& question, const std::atomic<bool>* stop) {
  const std::string worker = JoinPath(BinaryDir(), "holdfast-worker");
  const uint64_t begin = clock.MonotonicNs();
  HOLDFAST_ASSIGN(const ProcessOutput bare, RunProcess({worker, "--version"}, "", 1 << 16));   // what its libraries take to load
  const uint64_t start_ns = clock.MonotonicNs() - begin;
  if (bare.exit_code != 0) return Internal(worker + " does not start: is the build complete? " + bare.err);
  HOLDFAST_ASSIGN(const ProcessOutput answer, RunProcess({worker, "--measure-layer", question.Encode()}, "", 1 << 20, stop));
  if (answer.signal == SIGALRM) return Failed("it took longer than a minute");
  if (answer.signal != 0) return Failed("it ended with signal " + std::to_string(answer.signal));
  if (answer.exit_code != 0) return Failed(Printable(answer.err.substr(0, answer.err.find('\n'))));
  HOLDFAST_ASSIGN(const Json json, ParseJson(answer.out, "measured layer", 1 << 20));
  HOLDFAST_ASSIGN(LayerProbe probe, LayerProbe::FromJson(json, "measured layer"));
  probe.start_ns = start_ns;
  return probe;
}

}  // namespace holdfast
