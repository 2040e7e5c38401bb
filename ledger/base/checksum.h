// SPDX-License-Identifier: Apache-2.0
//
// SHA-256 (OpenSSL; what sha256sum(1) prints) names and verifies everything durable. CRC32C guards single headers.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "ledger/base/coding.h"

namespace holdfast {

struct Digest {
  std::array<uint8_t, 32> bytes{};
  friend constexpr auto operator<=>(const Digest&, const Digest&) = default;
  std::string Hex() const { return HexEncode(bytes); }
  bool IsZero() const { return *this == Digest{}; }
  static bool FromHex(std::string_view hex, Digest* out) { return HexDecode(hex, out->bytes); }
};

Digest Sha256(ByteSpan data);

// Incremental SHA-256. Movable, not copyable; not thread safe.
class Sha256Hasher {
 public:
  Sha256Hasher();
  ~Sha256Hasher();
  Sha256Hasher(Sha256Hasher&&) noexcept;
  Sha256Hasher& operator=(Sha256Hasher&&) noexcept;
  void Update(ByteSpan data);
  Digest Finish();  // once; the hasher may not be used afterwards

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// CRC-32C (Castagnoli), initial value 0: Crc32c("123456789") == 0xe3069283.
uint32_t Crc32c(ByteSpan data, uint32_t seed = 0);

}  // namespace holdfast
