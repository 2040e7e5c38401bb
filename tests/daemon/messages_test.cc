// SPDX-License-Identifier: Apache-2.0
//
// Wire messages: round trips, and decoders that meet anything.
#include "daemon/wire/messages.h"

#include <gtest/gtest.h>

#include <random>

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
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(EdgeMessage::Decode(ByteSpan(whole).first(n)).ok());
}

TEST(EdgeMessage, ChunkNumberBeyondCountIsRefused) {
  EdgeMessage m = SampleEdge();
  m.chunk = m.chunks;
  EXPECT_FALSE(EdgeMessage::Decode(m.Encode()).ok());
}

TEST(WireFuzz, MutatedMessagesNeverCrash) {
  std::mt19937 rng(1);
  const Bytes edge = SampleEdge().Encode(), credit = EdgeCredit{Nonce::Random(), 7}.Encode();
  const std::string report = WorkerReport{}.Encode();
  for (int i = 0; i < 20000; ++i) {
    Bytes a = edge, b = credit, c(report.begin(), report.end());
    for (Bytes* m : {&a, &b, &c}) {
      for (int k = 0; k < 3; ++k) (*m)[rng() % m->size()] = static_cast<uint8_t>(rng());
      if (rng() % 4 == 0) m->resize(rng() % (m->size() + 1));
    }
    (void)EdgeMessage::Decode(a);
    (void)EdgeCredit::Decode(b);
    (void)WorkerReport::Decode(AsText(c));
  }
}

}  // namespace
}  // namespace holdfast
