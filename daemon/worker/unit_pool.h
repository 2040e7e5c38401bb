// SPDX-License-Identifier: Apache-2.0
//
// Several units evicted at once: reading, hashing and compressing one is mostly one thread's work, committing is the ledger's owner's. No torch.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "ledger/records/records.h"

namespace holdfast {

struct UnitWork {
  std::function<Result<LayerRecord>(uint32_t unit)> evict;             // on up to `at_once` threads of the pool
  std::function<Status(uint32_t unit, const LayerRecord&)> commit;     // on the calling thread, in the order in which units get ready
  std::function<void()> tick;                                          // on the calling thread, at least every 200 ms
};

// Units are begun in the order given. After an error none is begun any more; what is ready by then is committed all the same, so that
// nothing that was done is lost; then the first error is returned.
Status EvictUnits(const std::vector<uint32_t>& units, uint32_t at_once, const UnitWork& work);

// How many to evict at once: each takes `eviction` bytes beside the first, within `spare` bytes. At least 1, at most `threads`.
uint32_t UnitsAtOnce(uint32_t threads, uint64_t spare, uint64_t eviction);

}  // namespace holdfast
