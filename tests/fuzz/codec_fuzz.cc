// SPDX-License-Identifier: Apache-2.0
//
// Payloads at rest. Input: codec (u8), raw length (u32), bytes. The bytes are decoded as that codec, and encoded by every codec.
#include "ledger/codec/codec.h"

#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

constexpr uint32_t kRawMax = 1u << 20;

void CheckDecode(Codec codec, ByteSpan encoded, size_t raw_len) {
  const Status check = CheckEncoded(codec, encoded, raw_len);
  Bytes out(raw_len);
  const Status s = Decode(codec, encoded, out);
  if (!s.ok()) return fuzz::CheckRefusal(s);
  HOLDFAST_CHECK(check.ok());  // what decodes was promised to
}

void CheckRoundTrip(Codec wanted, ByteSpan raw) {
  const Encoded e = Encode(wanted, raw);
  HOLDFAST_CHECK(e.codec == wanted || e.codec == Codec::kStored);
  Bytes back(raw.size());
  HOLDFAST_CHECK(Decode(e.codec, e.codec == Codec::kStored ? raw : ByteSpan(e.bytes), back).ok());
  HOLDFAST_CHECK(std::equal(raw.begin(), raw.end(), back.begin()));
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  Cursor in({data, size});
  const auto codec = static_cast<Codec>(fuzz::Take<uint8_t>(&in));
  const uint32_t raw_len = fuzz::Take<uint32_t>(&in) % kRawMax;
  CheckDecode(codec, in.rest(), raw_len);
  for (const Codec c : {Codec::kStored, Codec::kZstd, Codec::kBf16Planes, Codec::kF32Planes}) CheckRoundTrip(c, in.rest());
  return 0;
}
