// SPDX-License-Identifier: Apache-2.0
//
// The report at the end of a job: built from the fold and what this process saw, kept in the D record, printed by run and status.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "daemon/node/supervisor.h"
#include "ledger/fold/run_state.h"

namespace holdfast {

// Integers and strings only (it goes into a record).
Result<Json> BuildReport(const RunState& state, const std::map<std::string, uint64_t>& phase_ms, uint64_t rss_peak_bytes);
std::string RenderReport(const Json& report);

}  // namespace holdfast
