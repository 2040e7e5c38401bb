// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/sha256_pair.h"

#include <algorithm>

#include "ledger/base/result.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace holdfast {
namespace {

constexpr size_t kBlock = 64;

#if defined(__x86_64__)

// FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// One message on its way through the registers. The instructions want the state as (a b e f) and (c d g h), high word first.
struct Lane {
  __m128i abef, cdgh, abef_before, cdgh_before, words[4];  // words: the last sixteen of the message schedule
  const uint8_t* data;
};

__attribute__((target("sha,sse4.1"), always_inline)) inline void Load(Lane* l, const std::array<uint32_t, 8>& state) {
  const __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state.data()));
  const __m128i hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state.data() + 4));
  const __m128i low = _mm_unpacklo_epi32(hgfe, dcba);   // from the lowest: e a f b
  const __m128i high = _mm_unpackhi_epi32(hgfe, dcba);  // g c h d
  l->abef = _mm_shuffle_epi32(low, 0x72);               // f e b a
  l->cdgh = _mm_shuffle_epi32(high, 0x72);              // h g d c
}

__attribute__((target("sha,sse4.1"), always_inline)) inline void Store(const Lane& l, std::array<uint32_t, 8>* state) {
  const __m128i abcd = _mm_unpackhi_epi64(l.abef, l.cdgh);  // b a d c
  const __m128i efgh = _mm_unpacklo_epi64(l.abef, l.cdgh);  // f e h g
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state->data()), _mm_shuffle_epi32(abcd, 0xb1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state->data() + 4), _mm_shuffle_epi32(efgh, 0xb1));
}

// Rounds 4 * step to 4 * step + 3.
__attribute__((target("sha,sse4.1"), always_inline)) inline void FourRounds(Lane* l, int step) {
  __m128i* const w = l->words;
  __m128i& now = w[step % 4];
  if (step < 4) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    now = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(l->data + 16 * step)), big_endian);
  } else {
    const __m128i& last = w[(step + 3) % 4];
    const __m128i seven_back = _mm_alignr_epi8(last, w[(step + 2) % 4], 4);
    now = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, w[(step + 1) % 4]), seven_back), last);
  }
  const __m128i added = _mm_add_epi32(now, _mm_load_si128(reinterpret_cast<const __m128i*>(kRound + 4 * step)));
  l->cdgh = _mm_sha256rnds2_epu32(l->cdgh, l->abef, added);
  l->abef = _mm_sha256rnds2_epu32(l->abef, l->cdgh, _mm_shuffle_epi32(added, 0x0e));
}

// Compresses `blocks` blocks of each of `N` messages.
template <size_t N>
__attribute__((target("sha,sse4.1"))) void Compress(std::array<std::array<uint32_t, 8>*, N> states, std::array<const uint8_t*, N> data,
                                                    size_t blocks) {
  Lane lanes[N];
  for (size_t i = 0; i < N; ++i) {
    Load(&lanes[i], *states[i]);
    lanes[i].data = data[i];
  }
  for (; blocks > 0; --blocks) {
    for (Lane& l : lanes) l.abef_before = l.abef, l.cdgh_before = l.cdgh;
#pragma GCC unroll 16
    for (int step = 0; step < 16; ++step) {
      for (Lane& l : lanes) FourRounds(&l, step);
    }
    for (Lane& l : lanes) {
      l.abef = _mm_add_epi32(l.abef, l.abef_before);
      l.cdgh = _mm_add_epi32(l.cdgh, l.cdgh_before);
      l.data += kBlock;
    }
  }
  for (size_t i = 0; i < N; ++i) Store(lanes[i], states[i]);
}

bool HasShaInstructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kSha = 1u << 29;
  return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & kSha) != 0;
}

#else

template <size_t N>
void Compress(std::array<std::array<uint32_t, 8>*, N>, std::array<const uint8_t*, N>, size_t) {
  HOLDFAST_CHECK(false);  // HasFastSha256Pair says no
}
bool HasShaInstructions() { return false; }

#endif

ByteSpan WholeBlocks(ByteSpan bytes) { return bytes.first(bytes.size() / kBlock * kBlock); }

}  // namespace

bool HasFastSha256Pair() {
  static const bool has = HasShaInstructions();
  return has;
}

// FIPS 180-4, 5.3.3.
Sha256PairHasher::Message::Message()
    : state{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

ByteSpan Sha256PairHasher::Message::FillRest(ByteSpan bytes) {
  const size_t have = length % kBlock;
  if (have == 0) return bytes;
  const size_t n = std::min(kBlock - have, bytes.size());
  std::copy_n(bytes.begin(), n, rest.begin() + static_cast<std::ptrdiff_t>(have));
  length += n;
  if (length % kBlock == 0) Compress<1>({&state}, {rest.data()}, 1);
  return bytes.subspan(n);
}

void Sha256PairHasher::Message::Keep(ByteSpan bytes) {
  std::copy(bytes.begin(), bytes.end(), rest.begin() + static_cast<std::ptrdiff_t>(length % kBlock));
  length += bytes.size();
}

// Padding: a one bit, zeros, the length in bits.
Digest Sha256PairHasher::Message::Finish() {
  const uint64_t bits = length * 8;
  Bytes padding{0x80};
  while ((length + padding.size()) % kBlock != kBlock - 8) padding.push_back(0);
  PutBe(&padding, bits);
  for (ByteSpan left = padding; !left.empty();) {
    if (length % kBlock == 0) {
      const size_t n = std::min(kBlock, left.size());
      Keep(left.first(n));
      if (n == kBlock) Compress<1>({&state}, {rest.data()}, 1);
      left = left.subspan(n);
    } else {
      left = FillRest(left);
    }
  }
  Digest d;
  for (size_t i = 0; i < d.bytes.size(); ++i) d.bytes[i] = static_cast<uint8_t>(state[i / 4] >> (24 - 8 * (i % 4)));
  return d;
}

Digest Sha256PairHasher::UpdateBeside(ByteSpan bytes, ByteSpan value) {
  if (!fast_) {
    openssl_.Update(bytes);
    return Sha256(value);
  }
  Message beside;
  bytes = stream_.FillRest(bytes);
  const ByteSpan ours = stream_.length % kBlock == 0 ? WholeBlocks(bytes) : ByteSpan(), theirs = WholeBlocks(value);
  const size_t both = std::min(ours.size(), theirs.size());
  Compress<2>({&stream_.state, &beside.state}, {ours.data(), theirs.data()}, both / kBlock);
  Compress<1>({&stream_.state}, {ours.data() + both}, (ours.size() - both) / kBlock);
  Compress<1>({&beside.state}, {theirs.data() + both}, (theirs.size() - both) / kBlock);
  stream_.length += ours.size();
  beside.length += theirs.size();
  stream_.Keep(bytes.subspan(ours.size()));
  beside.Keep(value.subspan(theirs.size()));
  return beside.Finish();
}

Digest Sha256PairHasher::Finish() { return fast_ ? stream_.Finish() : openssl_.Finish(); }

}  // namespace holdfast
