// SPDX-License-Identifier: Apache-2.0
//
// A record at rest: 15 bytes of key, then header and payload. Checksums and the payload's length are repaired, so that everything behind
// them is reached.
#include <algorithm>

#include "ledger/records/value.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

constexpr size_t kEncLenAt = 24, kPayloadCrcAt = 40, kHeaderCrcAt = 44;
constexpr uint64_t kDecodeMax = 16u << 20;    // what this fuzzer has the patience to expand
constexpr uint64_t kExpansionMax = 32768;     // bytes that one byte of zstd can stand for

void Put(Bytes* b, size_t at, uint64_t v, size_t width) {
  for (size_t i = 0; i < width; ++i) (*b)[at + i] = static_cast<uint8_t>(v >> (8 * i));
}

void Repair(Bytes* value) {
  if (value->size() < kRecordHeaderBytes) return;
  Put(value, kEncLenAt, value->size() - kRecordHeaderBytes, 8);
  Put(value, kPayloadCrcAt, Crc32c(ValuePayload(*value)), 4);
  Put(value, kHeaderCrcAt, Crc32c(ByteSpan(*value).first(kHeaderCrcAt)), 4);
}

void Try(const RecordKey& key, const Bytes& value) {
  const auto header = DecodeValueHeader(value);
  if (!header.ok()) return fuzz::CheckRefusal(header);
  HOLDFAST_CHECK(header->enc_len == value.size() - kRecordHeaderBytes && header->raw_len <= RawBytesMax(header->cls));
  HOLDFAST_CHECK(header->raw_len <= kExpansionMax * value.size());  // so nobody makes room for what is only announced
  if (header->raw_len > kDecodeMax) return;
  const auto record = DecodeRecordValue(key, value);
  if (!record.ok()) return fuzz::CheckRefusal(record);
  const auto again = DecodeRecordValue(key, EncodeRecordValue(*record));
  HOLDFAST_CHECK(again.ok() && again->payload == record->payload && again->epoch == record->epoch && again->schema == record->schema &&
                 again->wall_ns == record->wall_ns);
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  const ByteSpan all(data, size);
  const auto key = RecordKey::Decode(all.first(std::min(size, kRecordKeyBytes)));
  if (!key.ok()) {
    fuzz::CheckRefusal(key);
    return 0;
  }
  const Bytes encoded = key->Encode();
  HOLDFAST_CHECK(std::equal(encoded.begin(), encoded.end(), data));
  Bytes value(all.begin() + kRecordKeyBytes, all.end());
  Try(*key, value);
  Repair(&value);
  Try(*key, value);
  return 0;
}
