// SPDX-License-Identifier: Apache-2.0
//
// The digest of a tensor: independent of how its bytes arrive, and what docs/ledger-format.md says.
#include "ledger/base/tensor_digest.h"

#include <gtest/gtest.h>

#include <random>

namespace holdfast {
namespace {

Bytes RandomBytes(size_t n) {
  std::mt19937_64 rng(n);
  Bytes b(n);
  for (uint8_t& x : b) x = static_cast<uint8_t>(rng());
  return b;
}

// As the format's page has it, from nothing but SHA-256.
Digest ByTheBook(ByteSpan tensor) {
  if (tensor.size() <= 8u << 20) return Sha256(tensor);
  Bytes text;
  for (const char c : std::string_view("holdfast tensor 1\n")) text.push_back(static_cast<uint8_t>(c));
  for (size_t at = 0; at < tensor.size(); at += 8u << 20) {
    const Digest d = Sha256(tensor.subspan(at, std::min<size_t>(8u << 20, tensor.size() - at)));
    text.insert(text.end(), d.bytes.begin(), d.bytes.end());
  }
  return Sha256(text);
}

TEST(TensorDigest, IsWhatTheFormatSaysAtEveryEdge) {
  constexpr size_t kPiece = kDigestPieceBytes;
  for (const size_t n : {size_t{0}, size_t{1}, kPiece - 1, kPiece, kPiece + 1, 2 * kPiece, 2 * kPiece + 5}) {
    const Bytes tensor = RandomBytes(n);
    EXPECT_EQ(TensorDigest(tensor), ByTheBook(tensor)) << n;
    EXPECT_EQ(DigestPieces(n), std::max<size_t>(1, (n + kPiece - 1) / kPiece)) << n;
  }
}

TEST(TensorDigest, DoesNotHangOnTheParts) {
  const Bytes tensor = RandomBytes(3 * kDigestPieceBytes - 7);
  const Digest whole = TensorDigest(tensor);
  std::mt19937 rng(1);
  for (int round = 0; round < 5; ++round) {
    TensorHasher hasher;
    for (size_t at = 0; at < tensor.size();) {
      const size_t n = std::min<size_t>(tensor.size() - at, rng() % (5u << 20));
      hasher.Update(ByteSpan(tensor).subspan(at, n));
      at += n;
    }
    EXPECT_EQ(hasher.Finish(), whole);
  }
  std::vector<Digest> pieces;
  for (size_t at = 0; at < tensor.size(); at += kDigestPieceBytes) pieces.push_back(Sha256(ByteSpan(tensor).subspan(at, std::min<size_t>(kDigestPieceBytes, tensor.size() - at))));
  EXPECT_EQ(TensorDigestOf(pieces), whole);
}

TEST(TensorDigest, TellsATensorFromTheDigestsOfItsPieces) {
  const Bytes tensor = RandomBytes(kDigestPieceBytes + 1);
  Bytes digests;
  for (const ByteSpan piece : {ByteSpan(tensor).first(kDigestPieceBytes), ByteSpan(tensor).subspan(kDigestPieceBytes)}) {
    const Digest d = Sha256(piece);
    digests.insert(digests.end(), d.bytes.begin(), d.bytes.end());
  }
  EXPECT_NE(TensorDigest(tensor), TensorDigest(digests));
}

}  // namespace
}  // namespace holdfast
