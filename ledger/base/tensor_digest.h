// SPDX-License-Identifier: Apache-2.0
//
// The digest of a tensor's bytes, of the source's and of the result's: SHA-256 if they fit into one piece, else the SHA-256 over
// "holdfast tensor 1\n" and the SHA-256s of the pieces in order. Thus several threads can hash one tensor, whose reading would otherwise be bound by
// one core.
#pragma once

#include <span>
#include <vector>

#include "ledger/base/checksum.h"

namespace holdfast {

inline constexpr uint64_t kDigestPieceBytes = 8u << 20;   // the last piece may be shorter
constexpr uint64_t DigestPieces(uint64_t bytes) { return bytes == 0 ? 1 : (bytes + kDigestPieceBytes - 1) / kDigestPieceBytes; }

// `pieces`: one SHA-256 for each piece, at least one.
Digest TensorDigestOf(std::span<const Digest> pieces);
Digest TensorDigest(ByteSpan tensor);

// The same, of bytes that come in parts of any length. Movable, not copyable; not thread safe.
class TensorHasher {
 public:
  void Update(ByteSpan bytes);
  Digest Finish();   // once; the hasher may not be used afterwards

 private:
  Sha256Hasher piece_;
  uint64_t in_piece_ = 0;
  std::vector<Digest> done_;
};

}  // namespace holdfast
