// SPDX-License-Identifier: Apache-2.0
#include "ledger/fold/seal.h"

#include <algorithm>
#include <bit>

namespace holdfast {

Result<Digest> SealRoot(const RunState& state, uint32_t first_layer, uint32_t last_layer, std::vector<uint32_t> units) {
  Sha256Hasher hasher;
  const Plan& plan = state.plan();
  for (uint32_t sample = 0; sample < state.job().samples; ++sample) {
    if (state.Omitted(sample)) continue;
    for (uint32_t layer = first_layer; layer < last_layer; ++layer) {
      const SampleRecord* s = state.Sample(sample, layer);
      if (s == nullptr) return NotFound("sample " + std::to_string(sample) + " of layer " + std::to_string(layer) + " is not committed");
      const size_t skip = plan.SitesOf(s->first_layer, layer).size(), count = plan.units[layer].sites.size();
      if (s->amax.size() < skip + count) return Corrupt("sample " + std::to_string(sample) + ": amax vector too short for the plan");
      Bytes bits;
      for (size_t i = 0; i < count; ++i) PutLe<uint32_t>(&bits, std::bit_cast<uint32_t>(s->amax[skip + i]));
      hasher.Update(bits);
    }
  }
  std::sort(units.begin(), units.end());
  for (uint32_t unit : units) {
    const LayerRecord* e = state.Layer(unit);
    if (e == nullptr) return NotFound("unit " + std::to_string(unit) + " is not evicted");
    Bytes head;
    PutLe<uint32_t>(&head, unit);
    PutLe<uint32_t>(&head, static_cast<uint32_t>(e->tensors.size()));
    hasher.Update(head);
    for (const StoredTensor& t : e->tensors) hasher.Update(t.digest.bytes);
  }
  return hasher.Finish();
}

std::vector<uint32_t> UnitsOf(const Plan& plan, const StagePlan& stage) {
  std::vector<uint32_t> units;
  if (stage.first_layer == 0) units.push_back(plan.layers);
  for (uint32_t layer = stage.first_layer; layer < stage.last_layer; ++layer) units.push_back(layer);
  if (stage.last_layer == plan.layers) units.push_back(plan.layers + 1);
  return units;
}

}  // namespace holdfast
