// SPDX-License-Identifier: Apache-2.0
//
// LMDB environments in memory. Input: entries {key length u8, value length u16, key, fill}. What was put in comes out in order, lies where
// its place says, and nothing of the file can be cut off unnoticed. Damaged pages are not tried: LMDB parses only what a digest vouches for.
#include <algorithm>
#include <utility>

#include "ledger/segment/lmdb_env.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

constexpr size_t kEntriesMax = 300, kKeyMax = 511;
using Entries = std::vector<std::pair<Bytes, Bytes>>;

// Appends what the input says; what LMDB must refuse is refused.
Entries Fill(EnvBuilder* builder, Cursor* in) {
  Entries entries;
  while (!in->rest().empty() && entries.size() < kEntriesMax) {
    const size_t key_len = fuzz::Take<uint8_t>(in) * 3, value_len = fuzz::Take<uint16_t>(in);
    Bytes key = fuzz::TakeBytes(in, key_len);
    Bytes value(value_len, fuzz::Take<uint8_t>(in));
    const bool sound = !key.empty() && key.size() <= kKeyMax && (entries.empty() || entries.back().first < key);
    const Status s = builder->Append(key, value);
    if (!sound) HOLDFAST_CHECK(s.code() == ErrorCode::kInvalidArgument);
    if (s.ok()) entries.emplace_back(std::move(key), std::move(value));
    else if (s.code() == ErrorCode::kResourceExhausted) break;
    else fuzz::CheckRefusal(s);
  }
  return entries;
}

void CheckContent(ByteSpan env, const Entries& want) {
  size_t i = 0;
  const Status s = ReadEnv(env, [&](ByteSpan key, ByteSpan value) {
    HOLDFAST_CHECK(i < want.size() && std::ranges::equal(key, want[i].first) && std::ranges::equal(value, want[i].second));
    ++i;
    return OkStatus();
  });
  HOLDFAST_CHECK(s.ok() && i == want.size());
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  auto builder = EnvBuilder::Create(4u << 20);
  HOLDFAST_CHECK(builder.ok());
  Cursor in({data, size});
  const Entries entries = Fill(&*builder, &in);
  const auto image = std::move(*builder).Seal(/*want_places=*/true);
  if (!image.ok()) return 0;  // the map was full
  CheckContent(image->bytes(), entries);
  HOLDFAST_CHECK(image->values().size() == entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const EnvImage::Place p = image->values()[i];
    HOLDFAST_CHECK(std::ranges::equal(image->bytes().subspan(p.offset, p.length), entries[i].second));
  }
  const auto ignore = [](ByteSpan, ByteSpan) { return OkStatus(); };
  for (const size_t cut : {size_t{1}, size_t{4096}}) fuzz::CheckRefusal(ReadEnv(image->bytes().first(image->bytes().size() - cut), ignore));
  return 0;
}
