// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/ids.h"

#include <sys/random.h>

#include "ledger/base/coding.h"
#include "ledger/base/result.h"

namespace holdfast {

std::string Nonce::Hex() const { return HexEncode(bytes); }

Nonce Nonce::Random() {
  Nonce n;
  size_t have = 0;
  while (have < n.bytes.size()) {
    const ssize_t got = getrandom(n.bytes.data() + have, n.bytes.size() - have, 0);
    HOLDFAST_CHECK(got > 0);
    have += static_cast<size_t>(got);
  }
  return n;
}

bool Nonce::FromHex(const std::string& hex, Nonce* out) { return HexDecode(hex, out->bytes); }

}  // namespace holdfast
