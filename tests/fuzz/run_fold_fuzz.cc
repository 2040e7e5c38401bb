// SPDX-License-Identifier: Apache-2.0
//
// The fold of a run directory whose slots are sound and whose records say anything (ledger_input.h). First byte: 1 = a job and a plan are
// there already. What folds answers every question; folding once more, or from scratch, answers the same.
#include "ledger/fold/run_state.h"
#include "ledger/format/layout.h"
#include "tests/fuzz/ledger_input.h"
#include "tests/fuzz/small_job.h"

namespace holdfast {
namespace {

constexpr uint32_t kAskedMax = 6;  // samples, layers

// Everything that the programs ask of a fold, as one text.
std::string Answers(const RunState& state) {
  Json out = {{"job", state.job().ToJson()}, {"numerics", EffectiveNumerics(state)}, {"invalid", state.invalid_records()}, {"stale", state.stale_records()},
              {"nondeterminism", state.nondeterminism()}, {"stages", state.stages().size()}, {"merge", state.merge_written().size()},
              {"omitted", state.OmittedSamples()}, {"skips_left", state.skips_left()}, {"samples_in", state.samples_in()}};
  for (const auto& [id, stage] : state.stages()) out["sealed"].push_back({id.value, stage.seal.has_value(), stage.blame ? stage.blame->sample : 0});
  for (const auto& [who, share] : state.Shares()) out["shares"].push_back({who.first, who.second, share.samples, share.units});
  if (state.assignment()) out["assignment"] = state.assignment()->ToJson();
  if (!state.has_plan()) return CanonicalJson(out);
  out["plan"] = state.plan().ToJson();
  for (uint32_t layer = 0; layer < std::min(state.plan().layers, kAskedMax); ++layer) {
    const auto amax = state.ReducedAmax(layer);
    out["amax"].push_back(amax.ok() ? std::to_string(amax->size()) : amax.error().message);
    for (uint32_t sample = 0; sample < kAskedMax; ++sample) {
      const SampleRecord* s = state.Sample(sample, layer);
      HOLDFAST_CHECK(s == nullptr || (s->sample == sample && s->first_layer <= layer && layer < s->last_layer));
      out["samples"].push_back({s != nullptr, state.CutBefore(sample, layer) != nullptr, state.SampleCovers(sample, 0, layer)});
    }
  }
  for (uint32_t unit = 0; unit < std::min(state.plan().layers + 2, kAskedMax); ++unit) out["units"].push_back(state.Layer(unit) != nullptr);
  return CanonicalJson(out);
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  SimFileSystem fs;
  const RunLayout layout("/run");
  HOLDFAST_CHECK(EnsureFormat(fs, layout, fuzz::FixedNonce(9)).ok());
  Cursor in({data, size});
  fuzz::StreamForger forger(fs, layout, fuzz::FixedNonce(1));
  if ((fuzz::Take<uint8_t>(&in) & 1) != 0) {
    for (Record r : fuzz::SmallJobRecords(fuzz::FixedNonce(1))) {
      r.epoch = fuzz::kEpoch;
      forger.Add(RunLayout::JobStream(), r, false);
    }
  }
  fuzz::Forge(&in, {RunLayout::JobStream(), "stage.00", "stage.01", RunLayout::MergeStream(), "node.n1"}, &forger);
  RunState state(fs, layout), twin(fs, layout);
  const Status s = state.Refresh();
  HOLDFAST_CHECK(twin.Refresh().code() == s.code());
  if (!s.ok()) {
    fuzz::CheckRefusal(s);
    return 0;
  }
  const std::string answers = Answers(state);
  HOLDFAST_CHECK(state.Refresh().ok() && Answers(state) == answers && Answers(twin) == answers);
  return 0;
}
