// SPDX-License-Identifier: Apache-2.0
//
// A segment's trailer: read, written again, and believed only where the bytes before it are those that it speaks of. The input is a whole
// file whose last 192 bytes are the trailer; a second try repairs length, digest and CRC. LMDB sees nothing of it: it parses what a
// digest vouches for, and meta pages are judged before (environment_fuzz.cc).
#include "ledger/segment/segment.h"

#include <algorithm>

#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

constexpr size_t kCrcAt = kTrailerBytes - 4;

void Try(const Bytes& file) {
  const auto trailer = CheckSegment(file);
  if (!trailer.ok()) return fuzz::CheckRefusal(trailer);
  const ByteSpan env = ByteSpan(file).first(file.size() - kTrailerBytes);
  HOLDFAST_CHECK(trailer->env_len == env.size() && trailer->env_sha256 == Sha256(env));
  HOLDFAST_CHECK(std::ranges::equal(trailer->Encode(), ByteSpan(file).last(kTrailerBytes)));
  Bytes longer = file;
  longer.insert(longer.begin(), 0);
  HOLDFAST_CHECK(!CheckSegment(longer).ok());
}

// The trailer says of the bytes before it what is true, whatever else it says.
Bytes Repaired(Bytes file) {
  const size_t at = file.size() - kTrailerBytes;
  const Digest digest = Sha256(ByteSpan(file).first(at));
  for (size_t i = 0; i < 8; ++i) file[at + 24 + i] = static_cast<uint8_t>(uint64_t{at} >> (8 * i));
  std::copy(digest.bytes.begin(), digest.bytes.end(), file.begin() + static_cast<ptrdiff_t>(at + 152));
  const uint32_t crc = Crc32c(ByteSpan(file).subspan(at, kCrcAt));
  for (size_t i = 0; i < 4; ++i) file[at + kCrcAt + i] = static_cast<uint8_t>(crc >> (8 * i));
  return file;
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  const Bytes file(data, data + size);
  Try(file);
  if (size >= kTrailerBytes) Try(Repaired(file));
  return 0;
}
