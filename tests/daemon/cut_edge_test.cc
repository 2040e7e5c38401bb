// SPDX-License-Identifier: Apache-2.0
//
// The data edge over real ZeroMQ sockets: bytes arrive whole, credit bounds what is under way, corruption is dropped and counted,
// either end may be reborn.
#include "daemon/transport/cut_edge.h"

#include <gtest/gtest.h>

#include <random>

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
  std::unique_ptr<CutSender> sender;
  std::unique_ptr<CutReceiver> receiver;
  std::map<uint32_t, Bytes> arrived;
  std::set<uint32_t> hints;
  bool keep = false;

  void MakeSender() {
    sender = std::make_unique<CutSender>(*Socket::Open(context, Socket::Kind::kDealer, endpoint, kDataBytesMax), clock, job, 5, 64u << 20);
  }
  void MakeReceiver(uint64_t capacity) {
    receiver.reset();
    // Within one process the old socket's name is freed by an I/O thread a moment later; between processes it dies with its owner.
    auto router = Socket::Open(context, Socket::Kind::kRouter, endpoint, kDataBytesMax);
    for (int i = 0; i < 200 && !router.ok(); ++i) {
      clock.SleepMs(10);
      router = Socket::Open(context, Socket::Kind::kRouter, endpoint, kDataBytesMax);
    }
    ASSERT_TRUE(router.ok()) << router.error().message;
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

TEST(CutEdge, ForeignAndCorruptMessagesAreDroppedAndCounted) {
  Edge e;
  e.MakeReceiver(1 << 20);
  auto raw = *Socket::Open(e.context, Socket::Kind::kDealer, e.endpoint, kDataBytesMax);
  EdgeMessage m;
  m.kind = EdgeMessage::Kind::kChunk;
  m.job = e.job;
  m.producer = Nonce::Random();
  m.boundary = 5;
  m.chunks = 1;
  m.tokens = 2;
  m.total_bytes = 2 * kHidden * 2;
  const Bytes payload = RandomCut(2, 6);
  m.digest = Sha256(AsBytes("something else"));
  const Bytes corrupt = m.Encode();
  m.job = Nonce::Random();
  m.digest = Sha256(payload);
  const Bytes foreign = m.Encode();
  for (int i = 0; i < 500 && e.receiver->dropped_chunks() < 2; ++i) {
    if (i == 0 || e.receiver->dropped_chunks() == 0) raw->Send({corrupt, payload});
    raw->Send({foreign, payload});
    WaitReadable({e.receiver->socket()}, -1, 20);
    e.receiver->Poll([&](uint32_t s, uint64_t, Bytes cut) { e.arrived[s] = std::move(cut); return false; }, [](uint32_t) {});
  }
  EXPECT_GE(e.receiver->dropped_chunks(), 2u);
  EXPECT_TRUE(e.arrived.empty());
}

}  // namespace
}  // namespace holdfast
