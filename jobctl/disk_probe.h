// SPDX-License-Identifier: Apache-2.0
//
// What the disk of a directory takes and gives, measured for a second or two.
#pragma once

#include "jobctl/cost_model.h"
#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"

namespace holdfast {

inline constexpr uint64_t kDiskProbeBytesMax = 256u << 20, kDiskProbeNs = 1'000'000'000;   // of writing

// Writes a file in `dir`, which exists, the way the merge writes (past the page cache where that works, one fsync), and reads it back. Its name is gone before its
// first byte is there, so nothing stays behind whatever happens. kResourceExhausted, ...: as the directory says.
Result<DiskProbe> ProbeDisk(FileSystem& fs, const Clock& clock, const std::string& dir);

}  // namespace holdfast
