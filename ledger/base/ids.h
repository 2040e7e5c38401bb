// SPDX-License-Identifier: Apache-2.0
//
// Strong identifiers: a SampleId never compares with a LayerId, and 128-bit nonces are values of their own.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <string>

namespace holdfast {

template <class Tag, class Rep>
struct StrongId {
  Rep value{};
  constexpr StrongId() = default;
  constexpr explicit StrongId(Rep v) : value(v) {}
  friend constexpr auto operator<=>(const StrongId&, const StrongId&) = default;
};

using StageId = StrongId<struct StageTag, uint16_t>;    // number in the name of a stage's stream
using SampleId = StrongId<struct SampleTag, uint32_t>;  // index of a calibration sequence, from 0
using LayerId = StrongId<struct LayerTag, uint32_t>;    // decoder layer; two more units exist, see records.h
using Epoch = StrongId<struct EpochTag, uint64_t>;      // fencing token of a stream's owner; 0 = nobody yet

// 128 random bits (job uuid, incarnation, commit nonce), drawn from getrandom(2) at the moment of use.
struct Nonce {
  std::array<uint8_t, 16> bytes{};
  friend constexpr auto operator<=>(const Nonce&, const Nonce&) = default;
  std::string Hex() const;                               // 32 lower-case digits
  static Nonce Random();
  static bool FromHex(const std::string& hex, Nonce* out);
};

}  // namespace holdfast

template <class Tag, class Rep>
struct std::hash<holdfast::StrongId<Tag, Rep>> {
  size_t operator()(const holdfast::StrongId<Tag, Rep>& id) const { return std::hash<Rep>()(id.value); }
};
