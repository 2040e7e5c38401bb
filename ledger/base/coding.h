// SPDX-License-Identifier: Apache-2.0
//
// Fixed-width integer coding and hex. On disk: values little-endian, LMDB keys big-endian (so that memcmp orders them).
// Decoders take a span and fail on short input; they never read past it.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace holdfast {

using ByteSpan = std::span<const uint8_t>;
using Bytes = std::vector<uint8_t>;

inline ByteSpan AsBytes(std::string_view s) { return {reinterpret_cast<const uint8_t*>(s.data()), s.size()}; }
inline std::string_view AsText(ByteSpan b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

template <class T>
inline void PutLe(Bytes* out, T v) {
  for (size_t i = 0; i < sizeof(T); ++i) out->push_back(static_cast<uint8_t>(static_cast<uint64_t>(v) >> (8 * i)));
}
template <class T>
inline void PutBe(Bytes* out, T v) {
  for (size_t i = sizeof(T); i-- > 0;) out->push_back(static_cast<uint8_t>(static_cast<uint64_t>(v) >> (8 * i)));
}

// Reads integers off the front of a span. After a short read every further read fails too.
class Cursor {
 public:
  explicit Cursor(ByteSpan data) : rest_(data) {}
  template <class T>
  bool Le(T* v) {
    if (rest_.size() < sizeof(T)) return Fail();
    uint64_t x = 0;
    for (size_t i = 0; i < sizeof(T); ++i) x |= static_cast<uint64_t>(rest_[i]) << (8 * i);
    *v = static_cast<T>(x);
    rest_ = rest_.subspan(sizeof(T));
    return true;
  }
  template <class T>
  bool Be(T* v) {
    if (rest_.size() < sizeof(T)) return Fail();
    uint64_t x = 0;
    for (size_t i = 0; i < sizeof(T); ++i) x = (x << 8) | rest_[i];
    *v = static_cast<T>(x);
    rest_ = rest_.subspan(sizeof(T));
    return true;
  }
  bool Raw(std::span<uint8_t> out) {
    if (rest_.size() < out.size()) return Fail();
    if (!out.empty()) std::memcpy(out.data(), rest_.data(), out.size());   // memcpy takes no null, whatever the length
    rest_ = rest_.subspan(out.size());
    return true;
  }
  ByteSpan rest() const { return rest_; }

 private:
  bool Fail() {
    rest_ = {};
    return false;
  }
  ByteSpan rest_;
};

std::string HexEncode(ByteSpan bytes);                        // lower case
bool HexDecode(std::string_view hex, std::span<uint8_t> out); // exactly 2*out.size() digits, lower or upper case

}  // namespace holdfast
