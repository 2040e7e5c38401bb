// SPDX-License-Identifier: Apache-2.0
//
// Sizes and durations as people write and read them.
#pragma once

#include <cstdint>
#include <string>

#include "ledger/base/result.h"

namespace holdfast {

// "24G", "1.5GiB", "800M", "123": bytes. G = GB = 10^9, GiB = 2^30.
Result<uint64_t> ParseSize(const std::string& text);
std::string FormatSize(uint64_t bytes);        // "1.23 GB"
std::string FormatUtc(uint64_t wall_ns, const char* format);   // as strftime(3), for people: "%Y-%m-%dT%H:%M:%SZ"
std::string FormatDuration(uint64_t seconds);  // "1 h 02 min", "3 min 05 s", "42 s"

}  // namespace holdfast
