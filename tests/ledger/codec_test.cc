// SPDX-License-Identifier: Apache-2.0
//
// Codecs: what goes in comes out, and what never went in is refused in bounded memory.
#include "ledger/codec/codec.h"

#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

constexpr Codec kAll[] = {Codec::kStored, Codec::kZstd, Codec::kBf16Planes, Codec::kF32Planes};

Bytes DecodeOk(const Encoded& e, ByteSpan raw) {
  Bytes out(raw.size());
  HOLDFAST_EXPECT_OK(Decode(e.codec, e.codec == Codec::kStored ? raw : ByteSpan(e.bytes), out));
  return out;
}

TEST(Codec, RoundTripsEveryCodecAndLength) {
  for (const Codec codec : kAll) {
    for (const size_t count : {0, 1, 2, 3, 15, 64, 1000, 70000}) {
      for (const Bytes& raw : {Bf16Weights(count, 1), F32Values(count, 2), Bytes(count, 7), RandomBytes(count, 3)}) {
        const Encoded e = Encode(codec, raw);
        EXPECT_EQ(DecodeOk(e, raw), raw);
        EXPECT_EQ(e.codec == Codec::kStored, e.bytes.empty());
      }
    }
  }
}

TEST(Codec, PlanesSaveAThirdOfWeightsAndNoiseIsStored) {
  const Bytes weights = Bf16Weights(1u << 20, 5);
  const Encoded planes = Encode(Codec::kBf16Planes, weights);
  ASSERT_EQ(planes.codec, Codec::kBf16Planes);
  EXPECT_LT(planes.bytes.size(), weights.size() * 0.72);
  EXPECT_LT(planes.bytes.size(), Encode(Codec::kZstd, weights).bytes.size());
  const Bytes noise = RandomBytes(1u << 20, 6);
  for (const Codec codec : kAll) EXPECT_EQ(Encode(codec, noise).codec, Codec::kStored);
}

TEST(Codec, OddLengthsAreStored) {
  EXPECT_EQ(Encode(Codec::kBf16Planes, Bytes(1001, 0)).codec, Codec::kStored);
  EXPECT_EQ(Encode(Codec::kF32Planes, Bytes(1002, 0)).codec, Codec::kStored);
  Bytes out(1001);
  const Encoded e = Encode(Codec::kZstd, Bytes(1001, 0));
  EXPECT_EQ(Decode(Codec::kBf16Planes, e.bytes, out).code(), ErrorCode::kCorrupt);
}

TEST(Codec, EncodingIsDeterministic) {
  const Bytes raw = Bf16Weights(100000, 8);
  EXPECT_EQ(Encode(Codec::kBf16Planes, raw).bytes, Encode(Codec::kBf16Planes, raw).bytes);
}

// A frame that says it is larger (a bomb), or smaller, than what the caller has room for is refused before it is expanded.
TEST(Codec, WrongSizesAreRefused) {
  const Bytes bomb(64u << 20, 0);
  const Encoded e = Encode(Codec::kZstd, bomb);
  ASSERT_LT(e.bytes.size(), 10000u);
  for (const size_t room : {size_t{0}, size_t{1}, size_t{1000}, bomb.size() - 1, bomb.size() + 1}) {
    Bytes out(room);
    EXPECT_EQ(Decode(Codec::kZstd, e.bytes, out).code(), ErrorCode::kCorrupt);
  }
  Bytes out(10);
  EXPECT_EQ(Decode(Codec::kStored, Bytes(9), out).code(), ErrorCode::kCorrupt);
  EXPECT_EQ(Decode(static_cast<Codec>(4), Bytes(10), out).code(), ErrorCode::kCorrupt);
}

// Nine bytes that announce 256 MiB, which a reader would make room for. Found by a fuzzer.
TEST(Codec, AFrameTooShortForWhatItAnnouncesIsRefused) {
  const Bytes frame = {0x28, 0xb5, 0x2f, 0xfd, 0xa4, 0x00, 0x00, 0x00, 0x10};
  for (const Codec codec : {Codec::kZstd, Codec::kBf16Planes, Codec::kF32Planes}) {
    const Status s = CheckEncoded(codec, frame, 256u << 20);
    ASSERT_EQ(s.code(), ErrorCode::kCorrupt);
    EXPECT_NE(s.error().message.find("more than it can hold"), std::string::npos) << s.error().message;
  }
  const Bytes zeros(16u << 20);  // the best that zstd can do is let pass
  const Encoded e = Encode(Codec::kZstd, zeros);
  EXPECT_LT(e.bytes.size(), 4096u);
  EXPECT_TRUE(CheckEncoded(Codec::kZstd, e.bytes, zeros.size()).ok());
}

TEST(Codec, TrailingBytesTwoFramesAndMissingChecksumAreRefused) {
  const Bytes raw(1000, 3);
  Bytes frame = Encode(Codec::kZstd, raw).bytes, out(raw.size());
  Bytes longer = frame;
  longer.push_back(0);
  EXPECT_EQ(Decode(Codec::kZstd, longer, out).code(), ErrorCode::kCorrupt);
  Bytes twice = frame;
  twice.insert(twice.end(), frame.begin(), frame.end());
  EXPECT_EQ(Decode(Codec::kZstd, twice, out).code(), ErrorCode::kCorrupt);
  Bytes unchecked(frame.begin(), frame.end() - 4);  // a valid frame, but without the checksum that we demand
  unchecked[4] = static_cast<uint8_t>(unchecked[4] & ~0x04);
  EXPECT_EQ(Decode(Codec::kZstd, unchecked, out).code(), ErrorCode::kCorrupt);
}

// Mutated frames: no crash, and never an OK with other bytes than the original.
TEST(Codec, MutatedInputIsRefusedOrHarmless) {
  std::mt19937_64 random(42);
  for (const Codec codec : {Codec::kZstd, Codec::kBf16Planes, Codec::kF32Planes}) {
    const Bytes raw = codec == Codec::kF32Planes ? F32Values(500, 1) : Bf16Weights(1000, 1);
    const Bytes frame = Encode(codec, raw).bytes;
    ASSERT_FALSE(frame.empty());
    for (int i = 0; i < 20000; ++i) {
      Bytes bad = frame;
      for (uint64_t k = random() % 4; k-- > 0;) bad[random() % bad.size()] ^= static_cast<uint8_t>(1u << random() % 8);
      if (random() % 4 == 0) bad.resize(random() % (bad.size() + 1));
      Bytes out(raw.size());
      if (Decode(codec, bad, out).ok()) ASSERT_EQ(out, raw);
    }
  }
}

TEST(Codec, RandomInputIsRefused) {
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    Bytes noise = RandomBytes(seed % 300, seed), out(seed % 97 * 4);
    if (noise.size() > 4 && seed % 2 == 0) noise[0] = 0x28, noise[1] = 0xb5, noise[2] = 0x2f, noise[3] = 0xfd;  // zstd's magic
    for (const Codec codec : {Codec::kZstd, Codec::kBf16Planes, Codec::kF32Planes}) EXPECT_FALSE(Decode(codec, noise, out).ok());
  }
}

}  // namespace
}  // namespace holdfast
