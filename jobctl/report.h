// SPDX-License-Identifier: Apache-2.0
//
// The report of a finished job (built by daemon/node/job_report.h, kept in the D record) as people read it.
#pragma once

#include <string>

#include "ledger/base/json.h"

namespace holdfast {

// "2 of 128 samples left out: 5 (ended 2 workers), 9 (not finite at ...)", of a list as OmittedJson makes it; "" when none is.
std::string RenderOmitted(const Json& omitted, uint64_t samples);

// What was planned beside what it took, phase by phase; "" where nothing was planned (see AddPlanned).
std::string RenderPlanned(const Json& report);

std::string RenderReport(const Json& report);

}  // namespace holdfast
