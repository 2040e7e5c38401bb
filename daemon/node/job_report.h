// SPDX-License-Identifier: Apache-2.0
//
// The report at the end of a job: built from the fold and what the processes of this attempt saw, kept in the D record.
#pragma once

#include <map>
#include <string>

#include "ledger/fold/run_state.h"

namespace holdfast {

// The samples that are left out: [{sample, stage, why}], ascending.
Json OmittedJson(const RunState& state);

// Integers and strings only (it goes into a record). phase_ms: milliseconds by phase, of this attempt; may be empty.
Result<Json> BuildReport(const RunState& state, const std::map<std::string, uint64_t>& phase_ms, uint64_t rss_peak_bytes);

}  // namespace holdfast
