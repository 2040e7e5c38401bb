// SPDX-License-Identifier: Apache-2.0
//
// The only source of chance in a simulation: a small generator (splitmix64) whose whole state is its seed.
#pragma once

#include <cstdint>

namespace holdfast::sim {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t n) { return n == 0 ? 0 : Next() % n; }
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  bool Chance(uint32_t per_mille) { return Below(1000) < per_mille; }
  Random Fork() { return Random(Next()); }

 private:
  uint64_t state_;
};

inline uint64_t Mix(uint64_t a, uint64_t b) { return Random(a * 0x9e3779b97f4a7c15ull ^ b).Next(); }

}  // namespace holdfast::sim
