// SPDX-License-Identifier: Apache-2.0
//
// The report of a finished job (built by daemon/node/job_report.h, kept in the D record) as people read it.
#pragma once

#include <string>

#include "ledger/base/json.h"

namespace holdfast {

std::string RenderReport(const Json& report);

}  // namespace holdfast
