// SPDX-License-Identifier: Apache-2.0
//
// How often daemons speak to each other, and after how long a silence counts. Every daemon speaks to every other, as any of them may have to
// coordinate in the next moment; so that this does not grow with the square of their number, they speak more rarely where there are many:
// once a second up to 16 nodes, then so that each hears about 16 beats a second, and every four seconds at the rarest. Pure.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace holdfast {

struct BeatPace {
  uint64_t period_ns;          // from one beat to the next, to each peer
  uint64_t link_silent_ns;     // then the node's file in the directory is read instead
  uint64_t silence_ns;         // then an owner of the coordinator's role may be replaced: three beats, in the directory, too
  uint64_t gather_ns;          // at least so long until everybody was heard twice (the first beat of a life may be what a dead one left behind); 0: as ever
  uint64_t stale_words_ns;     // so long after a claim, what nodes said of failures may be of an earlier try
};

constexpr BeatPace BeatPaceOf(size_t nodes) {
  constexpr uint64_t kSecond = 1'000'000'000;
  constexpr size_t kBeatsASecond = 16;
  constexpr uint64_t kRarest = 4;
  const uint64_t period = kSecond * std::clamp<uint64_t>((nodes + kBeatsASecond - 1) / kBeatsASecond, 1, kRarest);
  return {.period_ns = period, .link_silent_ns = 3 * period, .silence_ns = std::max(6 * kSecond, 3 * period), .gather_ns = period == kSecond ? 0 : 2 * period + kSecond,
          .stale_words_ns = period + 2 * kSecond};
}

}  // namespace holdfast
