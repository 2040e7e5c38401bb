// SPDX-License-Identifier: Apache-2.0
//
// Two messages at once have the digests that each has alone in OpenSSL: every length around a block, any cutting of the stream, any company.
#include "ledger/base/sha256_pair.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace holdfast {
namespace {

Bytes RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
  return bytes;
}

TEST(Sha256Pair, KnownAnswers) {
  for (const auto& [text, hex] : {std::pair{"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
                                  std::pair{"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}) {
    Sha256PairHasher hasher;
    EXPECT_EQ(hasher.UpdateBeside(AsBytes(text), AsBytes(text)).Hex(), hex);
    EXPECT_EQ(hasher.Finish().Hex(), hex);
  }
}

TEST(Sha256Pair, EveryLengthBesideAnyOther) {
  const Bytes bytes = RandomBytes(400, 1);
  for (size_t length = 0; length < 200; ++length) {
    for (const size_t other : {size_t{0}, size_t{1}, size_t{55}, size_t{56}, size_t{63}, size_t{64}, size_t{65}, size_t{128}, 400 - length}) {
      const ByteSpan stream = ByteSpan(bytes).first(length), value = ByteSpan(bytes).last(other);
      Sha256PairHasher hasher;
      ASSERT_EQ(hasher.UpdateBeside(stream, value), Sha256(value)) << length << " beside " << other;
      ASSERT_EQ(hasher.Finish(), Sha256(stream)) << length << " beside " << other;
    }
  }
}

TEST(Sha256Pair, AnyCuttingOfTheStream) {
  std::mt19937 random(2);
  for (int run = 0; run < 200; ++run) {
    const Bytes stream = RandomBytes(random() % 20000, random());
    Sha256PairHasher hasher;
    for (size_t at = 0; at < stream.size();) {
      const size_t n = std::min<size_t>(random() % (run % 2 == 0 ? 100 : 3000), stream.size() - at);
      const Bytes value = RandomBytes(random() % 5000, random());
      if (random() % 3 == 0) {
        hasher.Update(ByteSpan(stream).subspan(at, n));
      } else {
        ASSERT_EQ(hasher.UpdateBeside(ByteSpan(stream).subspan(at, n), value), Sha256(value));
      }
      at += n;
    }
    ASSERT_EQ(hasher.Finish(), Sha256(stream));
  }
}

}  // namespace
}  // namespace holdfast
