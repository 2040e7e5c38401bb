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

struct Todo {
  std::vector<uint32_t> samples;          // to be computed by this stage, ascending
  std::map<uint32_t, Cut> cuts;           // of those, the inputs that are committed already
  std::vector<uint32_t> upstream_wanted;  // of those, the inputs that are not (empty for the first stage)
};

// A sample needs this stage when its amax is unknown for a layer of the range, or when a later stage needs it and its cut behind this
// stage is not in the ledger. (After a re-plan, samples that an earlier plan finished are not computed again.) What is left out needs nobody.
Todo TodoOf(const RunState& state, const StagePlan& stage);

// Digests of source tensors that the ledger knows, for refusing a source that changed.
std::function<std::optional<Digest>(const std::string&)> KnownDigests(const RunState& state);

// Reads and decodes a cut; its bytes are checked against its digest.
Result<Bytes> ReadCut(FileSystem& fs, const RunLayout& layout, const Cut& cut);

}  // namespace holdfast
