// SPDX-License-Identifier: Apache-2.0
//
// Wire messages: round trips, and decoders that meet anything.
#include "daemon/wire/messages.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "daemon/wire/beat.h"

namespace holdfast {
namespace {

EdgeMessage SampleEdge() {
  EdgeMessage m;
  m.kind = EdgeMessage::Kind::kChunk;
  m.job = Nonce::Random();
  m.producer = Nonce::Random();
  m.boundary = 14;
  m.sample = 3;
  m.chunk = 1;
  m.chunks = 2;
  m.tokens = 512;
  m.total_bytes = 512 * 576 * 2;
  m.digest = Sha256(AsBytes("x"));
  return m;
}

TEST(WorkerReport, RoundTrip) {
  WorkerReport r;
  r.kind = WorkerReport::Kind::kFailed;
  r.stage = 2;
  r.attempt = 3;
  r.phase = "evict";
  r.samples_done = 5;
  r.error = "quote \" and \xff byte";
  const auto back = WorkerReport::Decode(r.Encode());
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->phase, "evict");
  EXPECT_EQ(back->samples_done, 5u);
  EXPECT_EQ(back->kind, WorkerReport::Kind::kFailed);
}

TEST(WorkerReport, UnknownVersionIsRefused) {
  std::string text = WorkerReport{}.Encode();
  text.replace(text.find("\"v\":2"), 5, "\"v\":9");
  EXPECT_EQ(WorkerReport::Decode(text).code(), ErrorCode::kUnsupported);
}

TEST(WorkerReport, NumbersOutOfRangeAreRefused) {
  for (const char* field : {"\"stage\":0", "\"attempt\":0"}) {
    std::string text = WorkerReport{}.Encode();
    text.replace(text.find(field), strlen(field), std::string(field) + "000000000000");
    EXPECT_FALSE(WorkerReport::Decode(text).ok()) << text;
    text = WorkerReport{}.Encode();
    text.replace(text.find(field), strlen(field), std::string(field).replace(strlen(field) - 1, 1, "4294967296"));
    EXPECT_EQ(WorkerReport::Decode(text).code(), ErrorCode::kCorrupt) << text;
  }
}

TEST(EdgeMessage, RoundTrip) {
  const EdgeMessage m = SampleEdge();
  const auto back = EdgeMessage::Decode(m.Encode());
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->sample, 3u);
  EXPECT_EQ(back->digest, m.digest);
  EXPECT_EQ(back->producer, m.producer);
}

TEST(EdgeMessage, EveryTruncationIsRefused) {
  const Bytes whole = SampleEdge().Encode();
  EXPECT_EQ(whole.size(), 113u);  // as docs/wire-protocol.md says
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(EdgeMessage::Decode(ByteSpan(whole).first(n)).ok());
}

TEST(EdgeMessage, ChunkNumberBeyondCountIsRefused) {
  EdgeMessage m = SampleEdge();
  m.chunk = m.chunks;
  EXPECT_FALSE(EdgeMessage::Decode(m.Encode()).ok());
}

// Everything that a peer can make us decode. What decodes is a value: encoded again it decodes to the same.
template <class M>
bool DecodesTo(const Result<M>& m) {
  if (!m.ok()) {
    EXPECT_FALSE(m.error().message.empty());
    return false;
  }
  const auto text = m->Encode();
  const ByteSpan bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  Result<M> again = Corrupt("");
  if constexpr (std::is_same_v<decltype(text), const Bytes>) again = M::Decode(bytes);
  else again = M::Decode(AsText(bytes));
  EXPECT_TRUE(again.ok() && again->Encode() == text) << AsText(bytes);
  return true;
}
int DecodeAll(ByteSpan b) {
  return DecodesTo(EdgeMessage::Decode(b)) + DecodesTo(EdgeCredit::Decode(b)) + DecodesTo(WorkerReport::Decode(AsText(b))) +
         DecodesTo(Beat::Decode(AsText(b))) + DecodesTo(ControlMessage::Decode(AsText(b)));
}

std::vector<Bytes> ValidMessages() {
  Beat beat;
  beat.node = "n1";
  beat.hostname = "h\"\\ \xe2\x82\xac";
  beat.coordinates = {"0123456789ab"};
  beat.warnings = {"root is not shared"};
  beat.tasks.resize(2);
  for (TaskBeat& t : beat.tasks) t.job = "0123456789ab";
  ControlMessage one, answer, hint;
  one.beats = {beat};
  answer.kind = ControlMessage::Kind::kBeats;
  answer.beats = {beat, beat};
  hint.kind = ControlMessage::Kind::kHint;
  hint.job = "0123456789ab";
  std::vector<Bytes> all = {SampleEdge().Encode(), EdgeCredit{Nonce::Random(), 7}.Encode()};
  for (const std::string& text : {WorkerReport{}.Encode(), beat.Encode(), one.Encode(), answer.Encode(), hint.Encode()}) all.emplace_back(text.begin(), text.end());
  return all;
}

TEST(WireFuzz, RandomBytesDecodeToNothing) {
  std::mt19937 rng(2);
  for (int i = 0; i < 20000; ++i) {
    Bytes b(rng() % 300);
    for (uint8_t& x : b) x = static_cast<uint8_t>(rng());
    EXPECT_EQ(DecodeAll(b), 0);
  }
}

TEST(WireFuzz, MutatedMessagesAreRefusedOrAreValues) {
  std::mt19937 rng(1);
  const std::vector<Bytes> valid = ValidMessages();
  const char* const pieces[] = {"{", "}", "[", "]", "\"", "\\u0000", "\\ud800", ",", ":", "null", "true", "-1", "1e999", "18446744073709551616", "0.5", "\xff", "{\"v\":2}"};
  int decoded = 0, refused = 0;
  for (int i = 0; i < 20000; ++i) {
    Bytes b = valid[rng() % valid.size()];
    for (uint32_t k = rng() % 4; k > 0 && !b.empty(); --k) {
      const auto at = b.begin() + static_cast<long>(rng() % b.size());
      switch (rng() % 5) {
        case 0: *at = static_cast<uint8_t>(rng()); break;
        case 1: *at ^= static_cast<uint8_t>(1u << (rng() % 8)); break;
        case 2: b.erase(at, at + static_cast<long>(rng() % static_cast<uint32_t>(b.end() - at + 1))); break;
        case 3: {
          const std::string_view piece = pieces[rng() % std::size(pieces)];
          b.insert(at, piece.begin(), piece.end());
          break;
        }
        default: {
          const Bytes& other = valid[rng() % valid.size()];
          b.insert(at, other.begin(), other.begin() + static_cast<long>(rng() % other.size()));
        }
      }
    }
    (DecodeAll(b) != 0 ? decoded : refused)++;
  }
  EXPECT_GT(decoded, 1000);  // else the mutations are too wild to reach anything
  EXPECT_GT(refused, 1000);
}

TEST(WireFuzz, DeepAndWideDocumentsAreRefused) {
  for (const std::string& text : {std::string(100000, '['), std::string(kBeatBytesMax, '{'), "{\"v\":2,\"tasks\":[" + std::string(100000, '0') + "]}"}) {
    EXPECT_EQ(DecodeAll(AsBytes(text)), 0);
  }
  std::string wide = "{\"beats\":[0";
  for (int i = 0; i < 200000; ++i) wide += ",0";
  EXPECT_EQ(DecodeAll(AsBytes(wide + "]}")), 0);
}

}  // namespace
}  // namespace holdfast
