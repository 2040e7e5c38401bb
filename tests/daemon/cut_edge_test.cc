// SPDX-License-Identifier: Apache-2.0
//
// The data edge over real ZeroMQ sockets: bytes arrive whole, credit bounds what is under way, corruption is dropped and counted,
// either end may be reborn, here or elsewhere; whatever a peer sends, memory stays within the capacity.
#include "daemon/transport/cut_edge.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "tests/daemon/transport_testing.h"

namespace holdfast {
namespace {

constexpr uint64_t kHidden = 64;

Bytes RandomCut(uint64_t tokens, uint32_t seed) {
  std::mt19937 rng(seed);
  Bytes b(tokens * kHidden * 2);
  for (uint8_t& x : b) x = static_cast<uint8_t>(rng());
  return b;
}

struct Edge {
  RealClock clock;
  Context context;
  Nonce job = Nonce::Random();
  std::string endpoint = "ipc://@holdfast-test-" + Nonce::Random().Hex();
  SocketSecurity security;           // of both ends
  std::unique_ptr<CutSender> sender;
  std::unique_ptr<CutReceiver> receiver;
  std::map<uint32_t, Bytes> arrived;
  std::set<uint32_t> hints;
  bool keep = false;

  void MakeSender() {
    sender = std::make_unique<CutSender>(Dial(), clock, job, 5, 64u << 20);
  }
  std::unique_ptr<Socket> Dial() {
    auto dealer = Socket::Open(context, Socket::Kind::kDealer, endpoint, kDataBytesMax, 0, security);
    EXPECT_TRUE(dealer.ok()) << dealer.error().message;
    return std::move(*dealer);
  }
  void MakeReceiver(uint64_t capacity) {
    receiver.reset();
    // Within one process the old socket's name is freed by an I/O thread a moment later; between processes it dies with its owner.
    auto router = Socket::Open(context, Socket::Kind::kRouter, endpoint, kDataBytesMax, 0, security);
    for (int i = 0; i < 200 && !router.ok(); ++i) {
      clock.SleepMs(10);
      router = Socket::Open(context, Socket::Kind::kRouter, endpoint, kDataBytesMax, 0, security);
    }
    ASSERT_TRUE(router.ok()) << router.error().message;
    endpoint = (*router)->endpoint();
    receiver = std::make_unique<CutReceiver>(std::move(*router),
                                             CutReceiver::Options{.job = job, .boundary = 5, .hidden_size = kHidden, .capacity_bytes = capacity});
  }
  // Turns both ends until `done` or a generous number of rounds has passed.
  template <class Done>
  bool Turn(const Done& done) {
    for (int i = 0; i < 2000 && !done(); ++i) {
      sender->Poll();
      if (receiver) {
        receiver->Poll([&](uint32_t s, uint64_t, Bytes cut) { arrived[s] = std::move(cut); return keep; },
                       [&](uint32_t s) { hints.insert(s); });
        WaitReadable({sender->socket(), receiver->socket()}, -1, 10);
      } else {
        WaitReadable({sender->socket()}, -1, 10);
      }
    }
    return done();
  }
};

TEST(CutEdge, CutsOfOneAndOfManyChunksArriveWhole) {
  Edge e;
  e.MakeReceiver(64u << 20);
  e.MakeSender();
  const auto small = std::make_shared<const Bytes>(RandomCut(3, 1));
  const auto large = std::make_shared<const Bytes>(RandomCut(80000, 2));  // 10 MB: three chunks
  e.sender->Offer(0, 3, small);
  e.sender->Offer(1, 80000, large);
  ASSERT_TRUE(e.Turn([&] { return e.arrived.size() == 2; }));
  EXPECT_EQ(e.arrived[0], *small);
  EXPECT_EQ(e.arrived[1], *large);
  EXPECT_EQ(e.receiver->dropped_chunks(), 0u);
}

TEST(CutEdge, CreditHoldsTheProducerUntilBytesAreReleased) {
  Edge e;
  const auto cut = std::make_shared<const Bytes>(RandomCut(100, 3));
  e.MakeReceiver(2 * cut->size());
  e.keep = true;
  e.MakeSender();
  for (uint32_t s = 0; s < 5; ++s) e.sender->Offer(s, 100, cut);
  ASSERT_TRUE(e.Turn([&] { return e.arrived.size() == 2; }));
  int rounds = 0;
  EXPECT_FALSE(e.Turn([&] { return e.arrived.size() > 2 || ++rounds > 50; }) && e.arrived.size() > 2);
  e.receiver->Release(cut->size());
  EXPECT_TRUE(e.Turn([&] { return e.arrived.size() == 3; }));
}

TEST(CutEdge, ConsumerRebornGetsWhatIsStillQueued) {
  Edge e;
  const auto cut = std::make_shared<const Bytes>(RandomCut(100, 4));
  e.MakeReceiver(cut->size());
  e.keep = true;
  e.MakeSender();
  for (uint32_t s = 0; s < 3; ++s) e.sender->Offer(s, 100, cut);
  ASSERT_TRUE(e.Turn([&] { return e.arrived.size() == 1; }));
  e.MakeReceiver(8 * cut->size());  // another life with room
  EXPECT_TRUE(e.Turn([&] { return e.arrived.size() == 3; }));
}

TEST(CutEdge, ProducerRebornStartsAfresh) {
  Edge e;
  const auto cut = std::make_shared<const Bytes>(RandomCut(100, 5));
  e.MakeReceiver(8 * cut->size());
  e.MakeSender();
  e.sender->Offer(0, 100, cut);
  ASSERT_TRUE(e.Turn([&] { return e.arrived.size() == 1; }));
  e.MakeSender();
  e.sender->Offer(1, 100, cut);
  EXPECT_TRUE(e.Turn([&] { return e.arrived.size() == 2; }));
}

TEST(CutEdge, CommitHintsArrive) {
  Edge e;
  e.MakeReceiver(1 << 20);
  e.MakeSender();
  ASSERT_TRUE(e.Turn([&] {
    e.sender->Committed(9);
    return e.hints.contains(9);
  }));
}

// A producer that says what the test wants, with right digests.
struct RawProducer {
  Edge& e;
  std::unique_ptr<Socket> dealer;
  EdgeMessage m;

  explicit RawProducer(Edge& edge) : e(edge), dealer(edge.Dial()) {
    m.kind = EdgeMessage::Kind::kChunk;
    m.job = e.job;
    m.producer = Nonce::Random();
    m.boundary = 5;
  }
  void Say(const std::vector<ByteSpan>& frames) {
    ASSERT_TRUE(Eventually([&] { return dealer->Send(frames); }));
  }
  void SayChunk(uint32_t sample, const Bytes& cut, uint32_t chunk) {
    m.sample = sample;
    m.tokens = cut.size() / (kHidden * 2);
    m.total_bytes = cut.size();
    m.chunk = chunk;
    m.chunks = static_cast<uint32_t>((cut.size() + kCutChunkBytes - 1) / kCutChunkBytes);
    const ByteSpan payload = ByteSpan(cut).subspan(chunk * kCutChunkBytes, std::min<uint64_t>(kCutChunkBytes, cut.size() - chunk * kCutChunkBytes));
    m.digest = Sha256(payload);
    Say({m.Encode(), payload});
  }
  // Until the receiver has counted `dropped` messages and taken `received` cuts.
  bool Receives(uint64_t dropped, uint64_t received) {
    return Eventually([&] {
      e.receiver->Poll([&](uint32_t s, uint64_t, Bytes cut) { e.arrived[s] = std::move(cut); return e.keep; }, [&](uint32_t s) { e.hints.insert(s); });
      return e.receiver->dropped_chunks() == dropped && e.receiver->received() == received;
    });
  }
};

TEST(CutEdge, ForeignAndCorruptMessagesAreDroppedAndCounted) {
  Edge e;
  e.MakeReceiver(1 << 20);
  RawProducer p(e);
  const Bytes cut = RandomCut(2, 6);
  EdgeMessage& m = p.m;
  m.tokens = 2;
  m.total_bytes = cut.size();
  m.chunks = 1;
  m.digest = Sha256(AsBytes("something else"));
  p.Say({m.Encode(), cut});                                   // 1: corrupt
  m.digest = Sha256(cut);
  m.job = Nonce::Random();
  p.Say({m.Encode(), cut});                                   // 2: another job
  m.job = e.job;
  m.boundary = 6;
  p.Say({m.Encode(), cut});                                   // 3: another boundary
  m.boundary = 5;
  p.Say({m.Encode()});                                        // 4: a chunk without payload
  p.Say({m.Encode(), cut, cut});                              // 5: and with two
  p.Say({AsBytes("hello"), cut});                             // 6: no header at all
  m.total_bytes += kHidden * 2;
  p.Say({m.Encode(), cut});                                   // 7: sizes that do not agree
  m.tokens = m.total_bytes = 0;
  p.Say({m.Encode(), Bytes()});                               // 8: an empty cut
  EXPECT_TRUE(p.Receives(8, 0)) << e.receiver->dropped_chunks();
  EXPECT_TRUE(e.arrived.empty());
  EXPECT_EQ(e.receiver->held_bytes(), 0u);
  p.SayChunk(1, cut, 0);
  EXPECT_TRUE(p.Receives(8, 1));
  EXPECT_EQ(e.arrived[1], cut);
}

TEST(CutEdge, ACutThatMissesAChunkGivesItsMemoryBack) {
  Edge e;
  const Bytes large = RandomCut(80000, 7), other = RandomCut(80000, 8);  // three chunks each
  e.MakeReceiver(large.size());
  e.keep = true;
  RawProducer p(e);
  p.SayChunk(0, large, 0);
  p.SayChunk(0, large, 2);            // 1 is lost: dropped, and the cut with it
  p.SayChunk(0, large, 1);            // dropped
  EXPECT_TRUE(p.Receives(2, 0)) << e.receiver->dropped_chunks();
  EXPECT_EQ(e.receiver->held_bytes(), 0u);
  p.SayChunk(0, large, 0);            // begun again, and left for another
  for (uint32_t c = 0; c < 3; ++c) p.SayChunk(1, other, c);
  EXPECT_TRUE(p.Receives(2, 1));
  EXPECT_EQ(e.arrived[1], other);
  EXPECT_EQ(e.receiver->held_bytes(), other.size());
}

TEST(CutEdge, APeerThatFloodsGetsNoMemoryBeyondTheCapacity) {
  Edge e;
  const Bytes cut = RandomCut(1000, 9);
  e.MakeReceiver(3 * cut.size());
  e.keep = true;
  RawProducer p(e);
  for (uint32_t s = 0; s < 50; ++s) {
    p.SayChunk(s, cut, 0);
    e.receiver->Poll([&](uint32_t sample, uint64_t, Bytes b) { e.arrived[sample] = std::move(b); return true; }, [](uint32_t) {});
    ASSERT_LE(e.receiver->held_bytes(), 3 * cut.size());
  }
  EXPECT_TRUE(p.Receives(47, 3));
  // A header that promises more than any memory: refused before a byte of it is set aside.
  p.m.tokens = 1u << 24;
  p.m.total_bytes = p.m.tokens * kHidden * 2;
  p.m.chunks = static_cast<uint32_t>(p.m.total_bytes / kCutChunkBytes);
  const Bytes payload(kCutChunkBytes);
  p.m.digest = Sha256(payload);
  p.Say({p.m.Encode(), payload});
  EXPECT_TRUE(p.Receives(48, 3));
  EXPECT_EQ(e.receiver->held_bytes(), 3 * cut.size());
  // Nor does a count of sent bytes at the end of its range win credit.
  p.m.kind = EdgeMessage::Kind::kHello;
  p.m.sent_bytes = UINT64_MAX - 5;
  p.Say({p.m.Encode()});
  e.receiver->Release(cut.size());
  EXPECT_TRUE(Eventually([&] {
    e.receiver->Poll([](uint32_t, uint64_t, Bytes) { return false; }, [](uint32_t) {});
    auto credit = p.dealer->Receive(1);
    return credit && credit->size() == 1 && EdgeCredit::Decode((*credit)[0])->granted_bytes == UINT64_MAX;
  }));
}

TEST(CutEdge, WhatWasLostOnTheWayDoesNotEatCredit) {
  Edge e;
  const Bytes cut = RandomCut(100, 10);
  e.MakeReceiver(2 * cut.size());
  RawProducer p(e);
  p.m.sent_bytes = 40 * cut.size();   // forty cuts, of which this is the last and the only one to arrive
  p.SayChunk(3, cut, 0);
  ASSERT_TRUE(p.Receives(0, 1));
  uint64_t granted = 0;
  ASSERT_TRUE(Eventually([&] {
    if (auto credit = p.dealer->Receive(1)) granted = EdgeCredit::Decode((*credit)[0])->granted_bytes;
    return granted > 0;
  }));
  EXPECT_EQ(granted, 42 * cut.size());
}

TEST(CutEdge, AMessageWithTooManyFramesIsDropped) {
  Edge e;
  e.MakeReceiver(1 << 20);
  RawProducer p(e);
  const Bytes cut = RandomCut(2, 11), header = p.m.Encode();
  p.Say(std::vector<ByteSpan>(1000, header));
  p.SayChunk(1, cut, 0);
  EXPECT_TRUE(p.Receives(1, 1));
}

TEST(CutEdge, OverTcpWithCurve) {
  TempDir tmp;
  Edge e;
  const std::string keys = tmp.path() + "/keys";
  e.endpoint = "tcp://127.0.0.1:*";
  e.security = {.self = KeysOf(keys, "n1"), .server_key = KeysOf(keys, "n1").public_key, .keys_dir = keys};
  e.MakeReceiver(64u << 20);
  e.MakeSender();
  const auto large = std::make_shared<const Bytes>(RandomCut(80000, 12));
  e.sender->Offer(1, 80000, large);
  ASSERT_TRUE(e.Turn([&] { return e.arrived.size() == 1; }));
  EXPECT_EQ(e.arrived[1], *large);
  EXPECT_EQ(e.receiver->dropped_chunks(), 0u);
  EXPECT_EQ(e.context.refused().count, 0u);
}

TEST(CutEdge, AnUnknownKeyGetsNoCreditAndIsNamed) {
  TempDir tmp;
  Edge e;
  const std::string keys = tmp.path() + "/keys", others = tmp.path() + "/others";
  e.endpoint = "tcp://127.0.0.1:*";
  e.security = {.self = KeysOf(keys, "n1"), .server_key = KeysOf(keys, "n1").public_key, .keys_dir = keys};
  e.MakeReceiver(64u << 20);
  e.security.self = KeysOf(others, "n1");
  e.MakeSender();
  e.sender->Offer(1, 100, std::make_shared<const Bytes>(RandomCut(100, 13)));
  ASSERT_TRUE(e.Turn([&] { return e.context.refused().count > 0; }));
  EXPECT_EQ(e.context.refused().names.at(0), "127.0.0.1 (unknown key)");
  EXPECT_TRUE(e.arrived.empty());
  EXPECT_EQ(e.receiver->received(), 0u);
}

TEST(CutEdge, RetargetGoesOnWithWhatIsQueuedFromIpcToTcpWithCurveAndBack) {
  TempDir tmp;
  Edge e;
  const std::string keys = tmp.path() + "/keys", here = e.endpoint;
  const auto cut = std::make_shared<const Bytes>(RandomCut(100, 14));
  e.MakeReceiver(cut->size());
  e.keep = true;
  e.MakeSender();
  for (uint32_t s = 0; s < 3; ++s) e.sender->Offer(s, 100, cut);
  ASSERT_TRUE(e.Turn([&] { return e.arrived.size() == 1; }));    // no credit for more

  e.endpoint = "tcp://127.0.0.1:*";                              // the consumer is reborn on another node
  e.security = {.self = KeysOf(keys, "n2"), .server_key = KeysOf(keys, "n2").public_key, .keys_dir = keys};
  e.MakeReceiver(cut->size());
  e.sender->Retarget(e.Dial());
  ASSERT_TRUE(e.Turn([&] { return e.arrived.size() == 2; }));

  e.endpoint = here;
  e.security = {};
  e.MakeReceiver(8 * cut->size());
  e.sender->Retarget(e.Dial());
  ASSERT_TRUE(e.Turn([&] { return e.arrived.size() == 3; }));
  for (uint32_t s = 0; s < 3; ++s) EXPECT_EQ(e.arrived[s], *cut);
}

TEST(CutEdge, RetargetToTheSameConsumerStartsTheCreditAfresh) {
  Edge e;
  const auto cut = std::make_shared<const Bytes>(RandomCut(100, 15));
  e.MakeReceiver(2 * cut->size());
  e.MakeSender();
  for (uint32_t s = 0; s < 20; ++s) {
    e.sender->Offer(s, 100, cut);
    ASSERT_TRUE(e.Turn([&] { return e.arrived.contains(s); })) << s;
    if (s % 5 == 4) e.sender->Retarget(e.Dial());
  }
  EXPECT_EQ(e.receiver->dropped_chunks(), 0u);
  EXPECT_EQ(e.receiver->held_bytes(), 0u);
}

TEST(CutEdge, TheSenderKnowsForHowLongItsConsumerHasBeenSilent) {
  Edge e;
  e.MakeReceiver(1 << 20);
  e.MakeSender();
  ASSERT_TRUE(Eventually([&] { return e.sender->silent_ms() > 20; }));  // nobody has answered yet
  uint64_t least = UINT64_MAX;
  EXPECT_TRUE(e.Turn([&] {
    least = std::min(least, e.sender->silent_ms());
    return least < 20;
  }));
}

}  // namespace
}  // namespace holdfast
