// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/clock.h"

#include <time.h>

namespace holdfast {

static uint64_t Now(clockid_t id) {
  timespec t{};
  clock_gettime(id, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000ull + static_cast<uint64_t>(t.tv_nsec);
}

uint64_t RealClock::MonotonicNs() const { return Now(CLOCK_BOOTTIME); }
uint64_t RealClock::WallNs() const { return Now(CLOCK_REALTIME); }
void RealClock::SleepMs(uint64_t ms) {
  timespec t{static_cast<time_t>(ms / 1000), static_cast<long>(ms % 1000) * 1000000};
  nanosleep(&t, nullptr);
}

}  // namespace holdfast
