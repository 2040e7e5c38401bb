// SPDX-License-Identifier: Apache-2.0
//
// Links of daemons over loopback: they hear each other, plain and with CURVE; who is not enrolled is turned away and named; a stalled owner
// is spoken for; a peer that dies comes back.
#include "daemon/transport/control_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>

#include "daemon/transport/sockets.h"
#include "tests/daemon/transport_testing.h"

namespace holdfast {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

// Real time plus what the test adds.
class ShiftedClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return real_.MonotonicNs() + shift_ns; }
  uint64_t WallNs() const override { return real_.WallNs(); }
  void SleepMs(uint64_t ms) override { real_.SleepMs(ms); }
  std::atomic<uint64_t> shift_ns{0};

 private:
  RealClock real_;
};

struct Node {
  ShiftedClock& clock;
  std::string name;
  Nonce root;
  std::unique_ptr<ControlLink> link;
  Beat beat;
  ControlLink::Heard all;                 // everything heard so far
  std::map<std::string, Beat> heard;      // newest by node

  Node(ShiftedClock& c, std::string n, const Nonce& r) : clock(c), name(std::move(n)), root(r) {}
  void Start(const std::string& keys_dir, const std::string& listen = "tcp://127.0.0.1:*") {
    ControlLink::Options o;
    o.listen = listen;
    o.root = root;
    o.keys_dir = keys_dir;
    if (!keys_dir.empty()) o.keys = KeysOf(keys_dir, name);
    link.reset();
    // Within one process the old port is freed by another thread, a moment later.
    ASSERT_TRUE(Eventually([&] {
      auto started = ControlLink::Start(clock, o);
      if (started.ok()) link = std::move(*started);
      return started.ok();
    }));
    beat.root = root;
    beat.node = name;
    beat.incarnation = Nonce::Random();
    beat.count = 1;
    beat.endpoint = link->endpoint();
    beat.public_key = o.keys.public_key;
    link->SetBeat(beat);
  }
  Peer AsPeer() const { return {name, link->endpoint(), beat.public_key}; }
  void Listen() {
    ControlLink::Heard h = link->Take();
    for (Beat& b : h.beats) heard[b.node] = std::move(b);
    h.hint |= all.hint;
    all = std::move(h);
  }
  bool Hears(const Node& other) {
    Listen();
    return heard.contains(other.name) && heard[other.name].incarnation == other.beat.incarnation;
  }
};

struct Links : ::testing::Test {
  TempDir tmp;
  ShiftedClock clock;
  Nonce root = Nonce::Random();
  std::string keys = tmp.path() + "/keys";
  Node a{clock, "a", root}, b{clock, "b", root};
};

TEST_F(Links, HearEachOtherInPlainOverLoopback) {
  a.Start("");
  b.Start("");
  a.link->SetPeers({b.AsPeer()});
  b.link->SetPeers({a.AsPeer()});
  EXPECT_TRUE(Eventually([&] { return a.Hears(b) && b.Hears(a); }));
  EXPECT_EQ(a.all.dropped, 0u);
  EXPECT_EQ(a.heard["b"].endpoint, b.link->endpoint());
  EXPECT_FALSE(a.all.hint);
  EXPECT_TRUE(Eventually([&] {
    b.link->Hint("0123456789ab", "stage.01");
    a.Listen();
    return a.all.hint;
  }));
}

TEST_F(Links, TheEventDescriptorSaysWhenThereIsSomethingToTake) {
  a.Start("");
  b.Start("");
  pollfd p{a.link->event_fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&p, 1, 0), 0);
  b.link->SetPeers({a.AsPeer()});
  EXPECT_EQ(::poll(&p, 1, 30000), 1);
  EXPECT_TRUE(a.Hears(b));
}

TEST_F(Links, HearEachOtherWithCurve) {
  a.Start(keys);
  b.Start(keys);
  a.link->SetPeers({b.AsPeer()});
  b.link->SetPeers({a.AsPeer()});
  EXPECT_TRUE(Eventually([&] { return a.Hears(b) && b.Hears(a); }));
  EXPECT_EQ(a.all.denied, 0u) << ::testing::PrintToString(a.all.denied_names);
}

TEST_F(Links, AnswerWithTheirOwnBeatFirst) {
  for (const std::string& dir : {std::string(), keys}) {
    SCOPED_TRACE(dir.empty() ? "plain" : "curve");
    a.Start(dir);
    b.Start(dir);
    a.heard.clear();
    b.link->SetPeers({a.AsPeer()});
    ASSERT_TRUE(Eventually([&] { return a.Hears(b); }));
    const CurveKeys self = dir.empty() ? CurveKeys{} : KeysOf(dir, "jobctl");
    const auto beats = AskBeats(root, a.AsPeer(), self, 20000);
    ASSERT_TRUE(beats.ok()) << beats.error().message;
    ASSERT_EQ(beats->size(), 2u);
    EXPECT_EQ((*beats)[0].node, "a");
    EXPECT_EQ((*beats)[1].node, "b");
    b.link.reset();
    clock.shift_ns += 60'000'000'000;  // b is silent for a minute
    const auto later = AskBeats(root, a.AsPeer(), self, 20000);
    ASSERT_TRUE(later.ok());
    EXPECT_EQ(later->size(), 1u);
  }
}

TEST_F(Links, AStalledOwnerIsSpokenFor) {
  a.Start("");
  b.Start("");
  b.beat.count = 40;
  b.link->SetBeat(b.beat);
  b.link->SetPeers({a.AsPeer()});
  ASSERT_TRUE(Eventually([&] { return a.Hears(b) && a.heard["b"].count == 40; }));
  EXPECT_EQ(a.heard["b"].storage_stalled_ms, 0u);
  clock.shift_ns += 100'000'000'000;
  ASSERT_TRUE(Eventually([&] { return a.Hears(b) && a.heard["b"].storage_stalled_ms >= 100'000; }));
  const uint64_t count = a.heard["b"].count;
  EXPECT_GT(count, 40u);
  ASSERT_TRUE(Eventually([&] { return a.Hears(b) && a.heard["b"].count > count; }));  // still alive
  b.beat.count = 41;
  b.link->SetBeat(b.beat);  // back: the count goes on rising from where it is
  const uint64_t last = a.heard["b"].count;
  ASSERT_TRUE(Eventually([&] { return a.Hears(b) && a.heard["b"].storage_stalled_ms == 0; }));
  EXPECT_GE(a.heard["b"].count, last);
}

TEST_F(Links, AnotherRootIsDroppedCountedAndNotAnswered) {
  a.Start("");
  Node stranger(clock, "s", Nonce::Random());
  stranger.Start("");
  stranger.link->SetPeers({a.AsPeer()});
  EXPECT_TRUE(Eventually([&] { a.Listen(); return a.all.dropped > 0; }));
  EXPECT_TRUE(a.heard.empty());
  const auto beats = AskBeats(stranger.root, a.AsPeer(), {}, 300);
  EXPECT_EQ(beats.code(), ErrorCode::kTransient);
  EXPECT_THAT(beats.error().message, HasSubstr("another root"));
}

TEST_F(Links, AnUnknownKeyIsTurnedAwayNamedAndLetInOnceEnrolled) {
  a.Start(keys);
  Node stranger(clock, "s", root);
  stranger.Start(tmp.path() + "/other/keys");
  stranger.link->SetPeers({a.AsPeer()});
  ASSERT_TRUE(Eventually([&] { a.Listen(); return a.all.denied > 0; }));
  EXPECT_THAT(a.all.denied_names, Contains("127.0.0.1 (unknown key)"));
  EXPECT_TRUE(a.heard.empty());
  std::filesystem::copy_file(tmp.path() + "/other/keys/s.public", keys + "/s.public");
  EXPECT_TRUE(Eventually([&] { return a.Hears(stranger); }));
}

TEST_F(Links, AKeyThatIsTakenAwayLosesTheNextHandshake) {
  a.Start(keys);
  b.Start(keys);
  b.link->SetPeers({a.AsPeer()});
  ASSERT_TRUE(Eventually([&] { return a.Hears(b); }));
  std::filesystem::rename(keys + "/b.public", tmp.path() + "/b.public");
  ASSERT_TRUE(Eventually([&] {
    b.link->SetPeers({});
    RealClock().SleepMs(100);
    b.link->SetPeers({a.AsPeer()});
    RealClock().SleepMs(400);
    a.Listen();
    return a.all.denied > 0;
  }));
  EXPECT_THAT(a.all.denied_names, Contains("127.0.0.1 (unknown key)"));
}

TEST_F(Links, AKeyWhoseSecretIsAnotherServersIsNoUse) {
  a.Start(keys);
  b.Start(keys);
  Peer wrong = a.AsPeer();
  wrong.public_key = b.beat.public_key;  // b thinks that a's port is b's: somebody else sits there
  b.link->SetPeers({wrong});
  ASSERT_TRUE(Eventually([&] { a.Listen(); return a.all.denied > 0; }));
  EXPECT_TRUE(a.heard.empty());
  // On a slow machine b has hung up before a asks for its address.
  EXPECT_THAT(a.all.denied_names, Contains(::testing::AnyOf(HasSubstr("127.0.0.1 ("), HasSubstr("somebody who left at once ("))));
}

TEST_F(Links, APlainPeerOfACurveListenerIsTurnedAway) {
  a.Start(keys);
  b.Start("");
  Peer plain = a.AsPeer();
  plain.public_key.clear();
  // Both sides find out. If the peer hangs up first, his reset may overtake what he said: then he just went away, and calls no more by himself.
  const auto shown_out = [&] {
    b.link->SetPeers({});
    b.link->SetPeers({plain});
    return Eventually([&] { a.Listen(); return a.all.denied > 0; }, 200);
  };
  bool denied = false;
  for (int call = 0; call < 15 && !denied; ++call) denied = shown_out();
  ASSERT_TRUE(denied);
  EXPECT_TRUE(a.heard.empty());
  EXPECT_EQ(AskBeats(root, plain, {}, 300).code(), ErrorCode::kTransient);
}

TEST_F(Links, ANodeSpeaksOnlyForItself) {
  a.Start(keys);
  b.Start(keys);
  b.link->SetPeers({a.AsPeer()});
  ASSERT_TRUE(Eventually([&] { return a.Hears(b); }));
  b.beat.node = "c";
  b.beat.incarnation = Nonce::Random();
  b.link->SetBeat(b.beat);
  EXPECT_TRUE(Eventually([&] { a.Listen(); return a.all.dropped > 0; }));
  EXPECT_FALSE(a.heard.contains("c"));
}

TEST_F(Links, APeerThatDiesComesBackOnItsPort) {
  for (const std::string& dir : {std::string(), keys}) {
    SCOPED_TRACE(dir.empty() ? "plain" : "curve");
    a.Start(dir);
    b.Start(dir);
    a.link->SetPeers({b.AsPeer()});
    b.link->SetPeers({a.AsPeer()});
    ASSERT_TRUE(Eventually([&] { return a.Hears(b) && b.Hears(a); }));
    const std::string endpoint = b.link->endpoint();
    b.Start(dir, endpoint);
    b.heard.clear();
    b.link->SetPeers({a.AsPeer()});
    EXPECT_TRUE(Eventually([&] { return a.Hears(b) && b.Hears(a); }));
  }
}

TEST_F(Links, ConnectionsToOthersAreClosed) {
  a.Start("");
  b.Start("");
  Node c(clock, "c", root);
  c.Start("");
  b.link->SetPeers({a.AsPeer()});
  ASSERT_TRUE(Eventually([&] { return a.Hears(b); }));
  b.link->SetPeers({c.AsPeer()});
  ASSERT_TRUE(Eventually([&] { return c.Hears(b); }));
  for (uint64_t count : {1000, 1001}) {  // by the second, whatever had been under way to a has arrived
    b.beat.count = count;
    b.link->SetBeat(b.beat);
    ASSERT_TRUE(Eventually([&] { return c.Hears(b) && c.heard["b"].count == count; }));
  }
  a.Listen();
  EXPECT_LT(a.heard["b"].count, 1000u);
}

TEST_F(Links, APortInUseAnAddressThatIsNotOursAndNoAddressAreErrorsThatSaySo) {
  a.Start(keys);
  ControlLink::Options o{.listen = a.link->endpoint(), .keys_dir = keys, .keys = KeysOf(keys, "b"), .root = root};
  auto taken = ControlLink::Start(clock, o);
  EXPECT_EQ(taken.code(), ErrorCode::kAlreadyExists);
  EXPECT_THAT(taken.error().message, HasSubstr(a.link->endpoint() + ": Address already in use"));
  o.listen = "tcp://192.0.2.1:*";
  auto foreign = ControlLink::Start(clock, o);
  EXPECT_EQ(foreign.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(foreign.error().message, HasSubstr("no such address"));
  o.listen = "tcp://127.0.0.1";
  EXPECT_EQ(ControlLink::Start(clock, o).code(), ErrorCode::kInvalidArgument);
}

TEST_F(Links, APlainListenerBeyondLoopbackIsRefusedWithAdvice) {
  for (const char* listen : {"tcp://*:*", "tcp://0.0.0.0:*", "tcp://[::]:*", "tcp://192.0.2.1:7070", "tcp://eth0:*"}) {
    const auto refused = ControlLink::Start(clock, {.listen = listen, .keys_dir = "", .keys = {}, .root = root});
    EXPECT_EQ(refused.code(), ErrorCode::kInvalidArgument) << listen;
    EXPECT_THAT(refused.error().message, HasSubstr("jobctl --root DIR keygen")) << listen;
  }
}

TEST_F(Links, APeerThatCannotBeTriedIsNamed) {
  a.Start("");
  b.Start(keys);
  a.link->SetPeers({{"far", "tcp://192.0.2.1:7070", ""}, {"odd", "no endpoint", ""}, b.AsPeer()});
  ASSERT_TRUE(Eventually([&] { a.Listen(); return a.all.peer_errors.size() == 3; }));
  EXPECT_THAT(a.all.peer_errors, Contains(HasSubstr("far: tcp://192.0.2.1:7070 is on another machine")));
  EXPECT_THAT(a.all.peer_errors, Contains(HasSubstr("b: " + b.link->endpoint() + " wants to know who speaks")));
  a.link->SetPeers({});
  EXPECT_TRUE(Eventually([&] { a.Listen(); return a.all.peer_errors.empty(); }));
}

TEST_F(Links, WithoutAnAddressALinkIsDumbAndHarmless) {
  auto link = ControlLink::Start(clock, {.listen = "", .keys_dir = "", .keys = {}, .root = root});
  ASSERT_TRUE(link.ok());
  EXPECT_EQ((*link)->endpoint(), "");
  (*link)->SetPeers({{"b", "tcp://127.0.0.1:1", ""}});
  (*link)->SetBeat(a.beat);
  (*link)->Hint("", "queue");
  EXPECT_TRUE((*link)->Take().beats.empty());
}

TEST_F(Links, IPv6WhereThereIsOne) {
  ControlLink::Options o{.listen = "tcp://[::1]:*", .keys_dir = "", .keys = {}, .root = root};
  auto link = ControlLink::Start(clock, o);
  if (!link.ok()) GTEST_SKIP() << "no IPv6 here: " << link.error().message;
  EXPECT_THAT((*link)->endpoint(), HasSubstr("tcp://[::1]:"));
  b.Start("");
  b.link->SetPeers({{"six", (*link)->endpoint(), ""}});
  EXPECT_TRUE(Eventually([&] { return !(*link)->Take().beats.empty(); }));
}

TEST_F(Links, EveryAddressOfTheMachineIsListenedOnOnlyWhenAsked) {
  b.Start(keys);
  EXPECT_THAT(b.link->endpoint(), HasSubstr("tcp://127.0.0.1:"));
  a.Start(keys, "tcp://*:*");
  const std::string told = a.link->endpoint();
  EXPECT_EQ(told.find("0.0.0.0"), std::string::npos) << "others cannot connect to " << told;
  EXPECT_EQ(told.find("[::]"), std::string::npos) << "others cannot connect to " << told;
  b.link->SetPeers({{"a", "tcp://127.0.0.1" + told.substr(told.rfind(':')), a.beat.public_key}});
  EXPECT_TRUE(Eventually([&] { return a.Hears(b); }));
}

TEST(Endpoints, LoopbackIsWhatCannotLeaveTheMachine) {
  for (const char* yes : {"tcp://127.0.0.1:5", "tcp://127.0.0.2:*", "tcp://[::1]:7070", "ipc://@x", "ipc:///run/x", "inproc://x"}) EXPECT_TRUE(IsLoopback(yes)) << yes;
  for (const char* no : {"tcp://10.0.0.2:5", "tcp://*:5", "tcp://0.0.0.0:5", "tcp://[::]:5", "tcp://127.evil.example:5", "tcp://localhost:5", "tcp://1270.0.0.1:5",
                         "tcp://127.0.0.1:0;10.0.0.2:5", "tcp://[fe80::1]:5", "udp://127.0.0.1:5", "", "tcp://", "127.0.0.1:5"}) {
    EXPECT_FALSE(IsLoopback(no)) << no;
  }
}

TEST(Endpoints, WhatAPersonTypesBecomesAnEndpointToBind) {
  const std::pair<const char*, const char*> good[] = {
      {"10.0.0.2", "tcp://10.0.0.2:*"},      {"10.0.0.2:7070", "tcp://10.0.0.2:7070"}, {"[fe80::1]:7070", "tcp://[fe80::1]:7070"},
      {"[fe80::1%eth0]", "tcp://[fe80::1%eth0]:*"}, {"fd00::2", "tcp://[fd00::2]:*"}, {"*", "tcp://*:*"},
      {"*:7070", "tcp://*:7070"},            {"0.0.0.0:0", "tcp://0.0.0.0:*"},         {"localhost:7070", "tcp://127.0.0.1:7070"},
      {"tcp://127.0.0.1:7070", "tcp://127.0.0.1:7070"}, {"lo", "tcp://127.0.0.1:*"}};
  for (const auto& [typed, endpoint] : good) {
    const auto parsed = ParseListen(typed);
    ASSERT_TRUE(parsed.ok()) << typed << ": " << parsed.error().message;
    EXPECT_EQ(*parsed, endpoint) << typed;
  }
  for (const char* bad : {"", ":7070", "10.0.0.2:", "10.0.0.2:70707", "10.0.0.2:-1", "10.0.0.2:7070x", "[fe80::1", "[]:1", "[10.0.0.2]:1", "[::1]7070", "a:b:c",
                          "udp://10.0.0.2:1"}) {
    const auto parsed = ParseListen(bad);
    EXPECT_EQ(parsed.code(), ErrorCode::kInvalidArgument) << bad;
    EXPECT_THAT(parsed.error().message, HasSubstr("cannot listen on")) << bad;
  }
  const auto unknown = ParseListen(std::string(70, 'x') + ":1");  // too long for a host's name: no server is asked
  EXPECT_THAT(unknown.error().message, HasSubstr("no interface and no host of that name"));
}

}  // namespace
}  // namespace holdfast
