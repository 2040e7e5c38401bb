// SPDX-License-Identifier: Apache-2.0
//
// What is left for a stage, read off the fold. Pure.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "ledger/fold/run_state.h"

namespace holdfast {

// Layers [first_layer, last_layer) of a stage, and the samples that are to go through them next.
struct Todo {
  uint32_t first_layer = 0, last_layer = 0;
  std::vector<uint32_t> samples;          // ascending
  std::map<uint32_t, Cut> cuts;           // of those, the inputs that are committed already
  std::vector<uint32_t> held;             // of those, the ones whose inputs are still in memory; ascending, in neither of the other two
  std::vector<uint32_t> upstream_wanted;  // of those, the inputs that are not, and that another stage makes
};

// The group of at most `layers_at_once` layers with which the stage goes on: the lowest that some sample has to pass. nullopt: nothing is left.
// A sample needs this stage when its amax is unknown for a layer of the range, or when a later stage needs it and its cut behind this
// stage is not in the ledger. (After a re-plan, samples that an earlier plan finished are not computed again.) It goes on from the last cut
// before what it lacks that is still there (in memory: `held`; in packs: `usable`; both are asked for cuts inside the stage alone): a group ends where another sample goes on, so
// that groups of other sizes, before a restart or by another plan, are taken up where they ended. What is left out needs nobody.
std::optional<Todo> NextGroup(const RunState& state, const StagePlan& stage, uint32_t layers_at_once, const std::function<bool(const Cut&)>& usable,
                              const std::function<bool(uint32_t sample, uint32_t layer)>& held = nullptr);

// Layers of the stage that samples have passed, of all samples together.
uint64_t LayersPassed(const RunState& state, const StagePlan& stage);

// Whether some of these samples have passed these layers before, and have to again because the way to the cut behind them was lost. What leaves such a
// group should be kept this time: else a worker that is killed again and again gets nowhere.
bool PassedBefore(const RunState& state, const Todo& todo);

// The cuts between the stage's groups that no sample goes on from any more: every sample has been computed from them. As long as what followed
// from a cut stands (nothing voids it), nobody reads it again.
struct ConsumedCuts {
  uint32_t below = 0;                     // of all boundaries inside the stage below this layer
  std::vector<PackManifest> packs;        // of those at `from` or above; without any that another cut refers to as well
};
ConsumedCuts FindConsumedCuts(const RunState& state, const StagePlan& stage, uint32_t from);

// Digests of source tensors that the ledger knows, for refusing a source that changed.
std::function<std::optional<Digest>(const std::string&)> KnownDigests(const RunState& state);

// Reads and decodes a cut; its bytes are checked against its digest.
Result<Bytes> ReadCut(FileSystem& fs, const RunLayout& layout, const Cut& cut);
// Whether its packs have names: `usable` for NextGroup.
bool CutIsThere(FileSystem& fs, const RunLayout& layout, const Cut& cut);

}  // namespace holdfast
