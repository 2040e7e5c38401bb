// SPDX-License-Identifier: Apache-2.0
//
// A loop over independent items on a few threads, for checkers that read a lot and decide little.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "ledger/base/result.h"

namespace holdfast {

// Calls fn(0) .. fn(n - 1), each once, on `threads` threads (at least one, never the calling one). After an error no new
// item is started; the error of the lowest item is returned. `tick` runs on the calling thread a few times a second and
// once at the end; it may be empty.
Status ParallelFor(uint32_t threads, size_t n, const std::function<Status(size_t)>& fn, const std::function<void()>& tick);

}  // namespace holdfast
