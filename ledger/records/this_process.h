// SPDX-License-Identifier: Apache-2.0
//
// The incarnation record of a running process, and whether the process of one still runs.
#pragma once

#include <string>

#include "ledger/base/process_identity.h"  // HostName, Liveness
#include "ledger/records/records.h"

namespace holdfast {

// The incarnation record of this process, under a fresh nonce.
Incarnation DescribeThisProcess(const std::string& node, const std::string& binary, const std::string& device);
Liveness ProbeIncarnation(const Incarnation& who);

}  // namespace holdfast
