// SPDX-License-Identifier: Apache-2.0
//
// SHA-256 of a stream and, beside it on the same core, of single values. The SHA instructions of x86 wait for their own results half of the
// time: two messages in turn take hardly longer than one. Where there are no such instructions, OpenSSL takes one after the other.
#pragma once

#include <array>

#include "ledger/base/checksum.h"

namespace holdfast {

// Whether two at once are faster than one after the other here.
bool HasFastSha256Pair();

// Not thread safe.
class Sha256PairHasher {
 public:
  // Takes the next bytes of the stream.
  void Update(ByteSpan bytes) { (void)UpdateBeside(bytes, {}); }
  // The same, and returns the SHA-256 of `value`, which is no part of the stream.
  Digest UpdateBeside(ByteSpan bytes, ByteSpan value);
  Digest Finish();  // of the stream; once

 private:
  // A message as FIPS 180-4 has it: what was compressed so far, and what does not fill a block yet.
  struct Message {
    std::array<uint32_t, 8> state;
    std::array<uint8_t, 64> rest;
    uint64_t length = 0;
    Message();
    ByteSpan FillRest(ByteSpan bytes);  // what is left of `bytes`; `rest` is compressed when it is full
    void Keep(ByteSpan bytes);          // less than a block
    Digest Finish();
  };
  const bool fast_ = HasFastSha256Pair();
  Message stream_;       // if fast
  Sha256Hasher openssl_;  // if not
};

}  // namespace holdfast
