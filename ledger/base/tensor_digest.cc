// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/tensor_digest.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "ledger/base/result.h"

namespace holdfast {

Digest TensorDigestOf(std::span<const Digest> pieces) {
  HOLDFAST_CHECK(!pieces.empty());
  if (pieces.size() == 1) return pieces[0];
  Sha256Hasher hasher;
  hasher.Update(AsBytes(std::string_view("holdfast tensor 1\n")));
  for (const Digest& d : pieces) hasher.Update(d.bytes);
  return hasher.Finish();
}

Digest TensorDigest(ByteSpan tensor) {
  TensorHasher hasher;
  hasher.Update(tensor);
  return hasher.Finish();
}

void TensorHasher::Update(ByteSpan bytes) {
  while (!bytes.empty()) {
    if (in_piece_ == kDigestPieceBytes) {   // full, and more comes: only now is it known not to be the last
      done_.push_back(std::exchange(piece_, Sha256Hasher()).Finish());
      in_piece_ = 0;
    }
    const size_t n = std::min<uint64_t>(bytes.size(), kDigestPieceBytes - in_piece_);
    piece_.Update(bytes.first(n));
    in_piece_ += n;
    bytes = bytes.subspan(n);
  }
}

Digest TensorHasher::Finish() {
  done_.push_back(piece_.Finish());
  return TensorDigestOf(done_);
}

}  // namespace holdfast
