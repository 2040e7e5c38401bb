// SPDX-License-Identifier: Apache-2.0
//
// Raw bytes at the port of a control link: whatever comes, a good peer is heard all the while, and what was refused is counted and named.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

#include "daemon/transport/control_link.h"
#include "tests/daemon/transport_testing.h"

namespace holdfast {
namespace {

class RawPeer {
 public:
  explicit RawPeer(const std::string& endpoint) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::stoul(endpoint.substr(endpoint.rfind(':') + 1))));
    ::inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0) << strerror(errno);
  }
  ~RawPeer() { ::close(fd_); }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;
  // Whatever the other side takes of it.
  void Say(const std::string& bytes) { (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT); }
  // Takes what comes until the other side closes; false: it has not.
  bool Closed() {
    char ignored[4096];
    const ssize_t n = ::recv(fd_, ignored, sizeof(ignored), MSG_DONTWAIT);
    if (n > 0) received_ += static_cast<size_t>(n);
    return n == 0 || (n < 0 && errno != EAGAIN);
  }
  // The other side has sent its greeting and is ready.
  bool Ready() { return !Closed() && received_ > 64 + 10; }

 private:
  int fd_;
  size_t received_ = 0;
};

// ZMTP 3.0: signature, version, mechanism, as-server, filler.
std::string Greeting(const std::string& mechanism) {
  std::string g = std::string("\xff\0\0\0\0\0\0\0\x01\x7f", 10) + std::string("\x03\x00", 2) + mechanism;
  g.resize(32, '\0');
  g.resize(64, '\0');
  return g;
}
std::string LongFrame(char flags, uint64_t size) {
  std::string f(1, flags);
  for (int shift = 56; shift >= 0; shift -= 8) f.push_back(static_cast<char>(size >> shift));
  return f;
}
std::string ReadyAsDealer() {
  const std::string body = std::string("\x05READY\x0bSocket-Type", 18) + std::string("\0\0\0\x06", 4) + "DEALER";
  return std::string("\x04") + static_cast<char>(body.size()) + body;
}
std::string Plain() { return Greeting("NULL") + ReadyAsDealer(); }

struct Garbage : ::testing::TestWithParam<bool> {
  TempDir tmp;
  RealClock clock;
  Nonce root = Nonce::Random();
  std::unique_ptr<ControlLink> link, good;
  ControlLink::Heard heard;
  uint64_t count = 0;

  void SetUp() override {
    link = Start("a");
    good = Start("b");
    Peer a{"a", link->endpoint(), ""};
    if (GetParam()) a.public_key = KeysOf(Dir(), "a").public_key;
    good->SetPeers({a});
    ASSERT_TRUE(StillHears());
  }
  std::string Dir() const { return GetParam() ? tmp.path() + "/keys" : ""; }
  std::unique_ptr<ControlLink> Start(const std::string& name) {
    ControlLink::Options o{.listen = "tcp://127.0.0.1:*", .keys_dir = Dir(), .keys = {}, .root = root};
    if (GetParam()) o.keys = KeysOf(Dir(), name);
    auto started = ControlLink::Start(clock, o);
    EXPECT_TRUE(started.ok());
    return std::move(*started);
  }
  void Listen() { heard = link->Take(); }
  // A new beat of the good peer arrives. (One that has not been set for long is spoken for, which moves its count: hence the distance.)
  bool StillHears() {
    Beat b;
    b.root = root;
    b.node = "b";
    b.count = count += 1000;
    good->SetBeat(b);
    return Eventually([&] {
      Listen();
      return heard.beats.size() == 1 && heard.beats[0].count >= count;
    });
  }
};

TEST_P(Garbage, PlainBytes) {
  RawPeer http(link->endpoint()), ssh(link->endpoint()), zeros(link->endpoint());
  http.Say("GET / HTTP/1.1\r\nHost: holdfast\r\n\r\n");
  ssh.Say("SSH-2.0-OpenSSH_9.2\r\n");
  zeros.Say(std::string(100000, '\0'));
  EXPECT_TRUE(StillHears());
}

TEST_P(Garbage, HalfAGreetingAndGone) {
  for (size_t n : {0, 1, 9, 10, 11, 12, 33, 63, 64}) RawPeer(link->endpoint()).Say(Greeting(GetParam() ? "CURVE" : "NULL").substr(0, n));
  EXPECT_TRUE(StillHears());
}

TEST_P(Garbage, SlowLorisesAreShownOut) {
  std::vector<std::unique_ptr<RawPeer>> lorises;
  for (int i = 0; i < 40; ++i) {
    lorises.push_back(std::make_unique<RawPeer>(link->endpoint()));
    lorises.back()->Say(Greeting(GetParam() ? "CURVE" : "NULL").substr(0, static_cast<size_t>(i)));
  }
  EXPECT_TRUE(StillHears());
  EXPECT_TRUE(Eventually([&] {
    return std::all_of(lorises.begin(), lorises.end(), [](auto& l) { return l->Closed(); });
  }));
  EXPECT_TRUE(StillHears());
}

TEST_P(Garbage, HugeFramesGetNoMemory) {
  rusage before{}, after{};
  ::getrusage(RUSAGE_SELF, &before);
  for (uint64_t size : {uint64_t{2} << 20, uint64_t{1} << 33, uint64_t{1} << 62, UINT64_MAX}) {
    for (const std::string& start : {Plain() + LongFrame('\x02', size), Greeting("NULL") + LongFrame('\x06', size), Greeting("CURVE") + LongFrame('\x06', size),
                                     LongFrame('\xff', size) + std::string(1, '\0')}) {
      RawPeer peer(link->endpoint());
      for (const std::string& part : {start, std::string(1 << 16, 'x')}) peer.Say(part);
      EXPECT_TRUE(Eventually([&] { return peer.Closed(); })) << size;
    }
  }
  EXPECT_TRUE(StillHears());
  ::getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 << 10) << "KiB";
}

TEST_P(Garbage, RandomBytesAtEveryStepOfTheHandshake) {
  std::mt19937 rng(7);
  for (int i = 0; i < 300; ++i) {
    RawPeer peer(link->endpoint());
    const std::string starts[] = {"", Greeting("NULL"), Greeting("CURVE"), Greeting("PLAIN"), Plain(), Greeting("CURVE") + std::string("\x04\xc8\x05HELLO", 8)};
    std::string noise(rng() % 400, '\0');
    for (char& c : noise) c = static_cast<char>(rng());
    peer.Say(starts[rng() % std::size(starts)] + noise);
  }
  EXPECT_TRUE(StillHears());
}

TEST_P(Garbage, WellFramedMessagesThatMeanNothing) {
  RawPeer peer(link->endpoint());
  peer.Say(Plain());
  if (!GetParam()) {
    ASSERT_TRUE(Eventually([&] { return peer.Ready(); }));  // what comes earlier is lost
  }
  for (const std::string& text : {std::string(), std::string("{}"), std::string("[[[["), std::string(200, '{'), std::string("\x00\xff", 2)}) {
    peer.Say(std::string(1, '\0') + static_cast<char>(text.size()) + text);
  }
  if (GetParam()) {
    EXPECT_TRUE(Eventually([&] { return peer.Closed(); }));
  } else {
    EXPECT_TRUE(Eventually([&] { Listen(); return heard.dropped >= 5; }));
  }
  EXPECT_TRUE(StillHears());
}

TEST_P(Garbage, WhoWasShownOutIsCountedAndNamed) {
  const auto named = [&](const std::string& why) {
    return Eventually([&] {
      Listen();
      return std::find(heard.denied_names.begin(), heard.denied_names.end(), "127.0.0.1 (" + why + ")") != heard.denied_names.end();
    });
  };
  RawPeer other(link->endpoint()), http(link->endpoint()), mute(link->endpoint());
  other.Say(Greeting(GetParam() ? "NULL" : "CURVE"));
  EXPECT_TRUE(named("no keys, or meant for another server"));
  http.Say("GET / HTTP/1.1\r\nHost: holdfast\r\n\r\n");
  if (GetParam()) {
    EXPECT_TRUE(named("not ZeroMQ"));  // a plain listener takes it for ZMTP 1.0, which has no greeting, and waits for what it says
  }
  EXPECT_TRUE(named("no handshake in time"));
  EXPECT_EQ(heard.denied, 3u) << ::testing::PrintToString(heard.denied_names);
  EXPECT_TRUE(StillHears());
}

TEST_P(Garbage, WhoGoesAwayAgainIsNotCounted) {
  for (int i = 0; i < 20; ++i) RawPeer(link->endpoint()).Say(i % 2 != 0 ? Greeting(GetParam() ? "CURVE" : "NULL") : "");
  EXPECT_TRUE(StillHears());
  EXPECT_EQ(heard.denied, 0u) << ::testing::PrintToString(heard.denied_names);
}

INSTANTIATE_TEST_SUITE_P(AtAListener, Garbage, ::testing::Bool(), [](const auto& info) { return info.param ? "Curve" : "Plain"; });

}  // namespace
}  // namespace holdfast
