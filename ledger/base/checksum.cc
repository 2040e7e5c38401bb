// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/checksum.h"

#include <openssl/evp.h>

#include <array>

#include "ledger/base/result.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace holdfast {

Digest Sha256(ByteSpan data) {
  Sha256Hasher h;
  h.Update(data);
  return h.Finish();
}

struct Sha256Hasher::Impl {
  EVP_MD_CTX* ctx = EVP_MD_CTX_new();
  ~Impl() { EVP_MD_CTX_free(ctx); }
};

// EVP_sha256() is fetched anew at each init in OpenSSL 3; fetching once matters for the many small records.
static const EVP_MD* Sha256Method() {
  static const EVP_MD* const method = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return method;
}

Sha256Hasher::Sha256Hasher() : impl_(std::make_unique<Impl>()) {
  HOLDFAST_CHECK(impl_->ctx != nullptr && EVP_DigestInit_ex(impl_->ctx, Sha256Method(), nullptr) == 1);
}
Sha256Hasher::~Sha256Hasher() = default;
Sha256Hasher::Sha256Hasher(Sha256Hasher&&) noexcept = default;
Sha256Hasher& Sha256Hasher::operator=(Sha256Hasher&&) noexcept = default;

void Sha256Hasher::Update(ByteSpan data) {
  HOLDFAST_CHECK(EVP_DigestUpdate(impl_->ctx, data.data(), data.size()) == 1);
}

Digest Sha256Hasher::Finish() {
  Digest d;
  unsigned n = 0;
  HOLDFAST_CHECK(EVP_DigestFinal_ex(impl_->ctx, d.bytes.data(), &n) == 1 && n == d.bytes.size());
  return d;
}

namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c & 1) ? 0x82f63b78u ^ (c >> 1) : c >> 1;
    t[i] = c;
  }
  return t;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

uint32_t Crc32cScalar(uint32_t crc, const uint8_t* p, size_t n) {
  while (n--) crc = kTable[(crc ^ *p++) & 0xff] ^ (crc >> 8);
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t Crc32cSse42(uint32_t crc, const uint8_t* p, size_t n) {
  uint64_t c = crc;
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t v;
    std::memcpy(&v, p, 8);
    c = _mm_crc32_u64(c, v);
  }
  crc = static_cast<uint32_t>(c);
  while (n--) crc = _mm_crc32_u8(crc, *p++);
  return crc;
}
#endif

}  // namespace

uint32_t Crc32c(ByteSpan data, uint32_t seed) {
  const uint32_t crc = ~seed;
#if defined(__x86_64__)
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  if (has_sse42) return ~Crc32cSse42(crc, data.data(), data.size());
#endif
  return ~Crc32cScalar(crc, data.data(), data.size());
}

}  // namespace holdfast
