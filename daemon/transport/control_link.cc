// SPDX-License-Identifier: Apache-2.0
#include "daemon/transport/control_link.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "daemon/transport/sockets.h"
#include "daemon/wire/beat_pace.h"

namespace holdfast {
namespace {

constexpr uint64_t kMsNs = 1'000'000, kSecondNs = 1000 * kMsNs;
constexpr uint64_t kTurnNs = kSecondNs;           // of what is to be done now and then
constexpr uint64_t kStalledNs = 15 * kSecondNs;   // a caller silent for longer hangs on storage
constexpr uint64_t kLiveNs = 10 * kSecondNs;      // whom we heard that lately is told of in answers
constexpr uint64_t kRedialNs = 30 * kSecondNs;    // ZeroMQ gives some peers up for good (a port that spoke nonsense once): begin anew
constexpr size_t kPeersMax = 256, kHintsMax = 64;
constexpr int kMessagesATurn = 256;               // then beats are sent again, whoever floods

class EventFd {
 public:
  EventFd() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { HOLDFAST_CHECK(fd_ >= 0); }
  ~EventFd() { ::close(fd_); }
  EventFd(const EventFd&) = delete;
  EventFd& operator=(const EventFd&) = delete;
  void Set() const {
    const uint64_t one = 1;
    (void)!::write(fd_, &one, sizeof(one));
  }
  void Clear() const {
    uint64_t ignored;
    (void)!::read(fd_, &ignored, sizeof(ignored));
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

struct ControlLink::Impl {
  Impl(const Clock& c, const Options& o) : clock(c), options(o) {}
  ~Impl() {
    stopping = true;
    wake.Set();
    if (thread.joinable()) thread.join();
  }

  struct Voice {  // to one peer
    Peer peer;
    std::unique_ptr<Socket> dealer;
    uint64_t reached_ns = 0;   // when it last took a message, or when it was dialled
  };
  struct Known {
    Beat beat;
    uint64_t heard_ns = 0;
  };

  void Run();
  void ApplyPeers();
  void Dial(Voice* voice);
  void Say(const ControlMessage& message);
  void SayHints();
  void SayBeat();
  void CountStall();
  std::optional<Beat> OwnBeat();
  void Listen();
  bool OnMessage(const std::vector<Bytes>& frames, const std::string& sender);
  bool OnBeat(Beat beat, const std::string& sender);
  void Answer(ByteSpan routing_id);
  void Forget();
  template <class Change>
  void Tell(const Change& change) {  // changes what Take will give
    {
      std::lock_guard lock(mutex);
      change();
    }
    event.Set();
  }

  const Clock& clock;
  const Options options;
  EventFd wake, event;
  std::atomic<bool> stopping{false};
  Context context;
  std::unique_ptr<Socket> router;                  // from here on of the thread only
  std::map<std::string, Voice> voices;             // by node
  std::map<Nonce, Known> known;                    // by incarnation
  std::mutex mutex;                                // guards what follows
  std::optional<std::vector<Peer>> new_peers;
  std::set<std::pair<std::string, std::string>> hints;
  std::optional<Beat> beat;
  uint64_t beat_set_ns = 0, counts_added = 0;
  std::map<Nonce, Beat> fresh;
  Heard heard;                                     // all but `beats` and what the context counts
  std::thread thread;
};

void ControlLink::Impl::Run() {
  uint64_t next_turn_ns = clock.MonotonicNs(), next_beat_ns = 0;
  while (!stopping) {
    ApplyPeers();
    SayHints();
    if (clock.MonotonicNs() >= next_turn_ns) {
      Forget();
      CountStall();
      next_turn_ns = clock.MonotonicNs() + kTurnNs;
      if (next_turn_ns >= next_beat_ns) {   // a turn is never quite a second
        SayBeat();
        next_beat_ns = next_turn_ns + BeatPaceOf(voices.size() + 1).period_ns;
      }
    }
    const uint64_t now = clock.MonotonicNs();
    const uint64_t wait_ns = next_turn_ns > now ? std::min(next_turn_ns - now, kTurnNs) : 0;
    WaitReadable({router.get()}, wake.fd(), static_cast<int>((wait_ns + kMsNs - 1) / kMsNs));
    wake.Clear();
    Listen();
  }
}

void ControlLink::Impl::ApplyPeers() {
  std::optional<std::vector<Peer>> wanted;
  {
    std::lock_guard lock(mutex);
    wanted.swap(new_peers);
    if (wanted) heard.peer_errors.clear();
  }
  if (!wanted) return;
  std::map<std::string, Voice> next;
  for (Peer& peer : *wanted) {
    if (next.size() >= kPeersMax || peer.endpoint.empty() || peer.endpoint == router->endpoint()) continue;
    const auto old = voices.find(peer.node);
    const bool keep = old != voices.end() && old->second.peer == peer && old->second.dealer != nullptr;
    Voice& voice = next[peer.node];
    if (keep && voice.dealer == nullptr) voice = std::move(old->second);
    else if (!keep) {
      voice.peer = std::move(peer);
      Dial(&voice);
    }
  }
  voices = std::move(next);
}

void ControlLink::Impl::Dial(Voice* voice) {
  const SocketSecurity security{.self = options.keys, .server_key = voice->peer.public_key, .keys_dir = ""};
  voice->dealer.reset();
  voice->reached_ns = clock.MonotonicNs();
  auto dealer = Socket::Open(context, Socket::Kind::kDealer, voice->peer.endpoint, kControlBytesMax, 0, security);
  if (dealer.ok()) {
    voice->dealer = std::move(*dealer);
    return;
  }
  Tell([&] {
    const std::string error = voice->peer.node + ": " + dealer.error().message;
    std::erase(heard.peer_errors, error);
    if (heard.peer_errors.size() < kPeersMax) heard.peer_errors.push_back(error);
  });
}

void ControlLink::Impl::Say(const ControlMessage& message) {
  const std::string text = message.Encode();
  for (auto& [node, voice] : voices) {
    const uint64_t now = clock.MonotonicNs();
    if (voice.dealer != nullptr && voice.dealer->Send({AsBytes(text)})) voice.reached_ns = now;
    else if (now - voice.reached_ns >= kRedialNs) Dial(&voice);
  }
}

void ControlLink::Impl::SayHints() {
  std::set<std::pair<std::string, std::string>> now;
  {
    std::lock_guard lock(mutex);
    now.swap(hints);
  }
  for (const auto& [job, stream] : now) {
    ControlMessage hint;
    hint.kind = ControlMessage::Kind::kHint;
    hint.root = options.root;
    hint.job = job;
    hint.stream = stream;
    Say(hint);
  }
}

void ControlLink::Impl::CountStall() {
  std::lock_guard lock(mutex);
  if (beat && clock.MonotonicNs() - beat_set_ns > kStalledNs) ++counts_added;
}

void ControlLink::Impl::SayBeat() {
  const std::optional<Beat> own = OwnBeat();
  if (!own) return;
  ControlMessage message;
  message.root = options.root;
  message.beats = {*own};
  Say(message);
}

std::optional<Beat> ControlLink::Impl::OwnBeat() {
  std::lock_guard lock(mutex);
  std::optional<Beat> own = beat;
  if (!own) return own;
  own->count += counts_added;
  const uint64_t silent_ns = clock.MonotonicNs() - beat_set_ns;
  if (silent_ns > kStalledNs) own->storage_stalled_ms = std::max(own->storage_stalled_ms, silent_ns / kMsNs);
  return own;
}

void ControlLink::Impl::Listen() {
  uint64_t dropped = 0;
  for (int i = 0; i < kMessagesATurn; ++i) {
    std::string sender;
    const auto frames = router->Receive(2, &sender);
    if (!frames) break;
    if (!OnMessage(*frames, sender)) ++dropped;
  }
  if (dropped == 0) return;
  std::lock_guard lock(mutex);
  heard.dropped += dropped;
}

bool ControlLink::Impl::OnMessage(const std::vector<Bytes>& frames, const std::string& sender) {
  if (frames.size() != 2) return false;
  auto message = ControlMessage::Decode(AsText(frames[1]));
  if (!message.ok() || message->root != options.root) return false;
  switch (message->kind) {
    case ControlMessage::Kind::kBeat: return OnBeat(std::move(message->beats[0]), sender);
    case ControlMessage::Kind::kHint: Tell([&] { heard.hint = true; }); return true;
    case ControlMessage::Kind::kAskBeats: Answer(frames[0]); return true;
    case ControlMessage::Kind::kBeats: return false;  // we ask nobody
  }
  return false;
}

bool ControlLink::Impl::OnBeat(Beat b, const std::string& sender) {
  const bool owner = options.keys.public_key.empty() || sender == b.node;
  if (b.root != options.root || !owner) return false;
  auto it = known.find(b.incarnation);
  if (it == known.end()) {
    if (known.size() >= kBeatsMax) return false;
    it = known.emplace(b.incarnation, Known{}).first;
  }
  if (b.count < it->second.beat.count) return true;  // overtaken on its way
  it->second.beat = b;
  it->second.heard_ns = clock.MonotonicNs();
  Tell([&] {
    const Nonce incarnation = b.incarnation;
    if (fresh.size() < kBeatsMax || fresh.contains(incarnation)) fresh[incarnation] = std::move(b);
  });
  return true;
}

void ControlLink::Impl::Answer(ByteSpan routing_id) {
  ControlMessage answer;
  answer.kind = ControlMessage::Kind::kBeats;
  answer.root = options.root;
  if (auto own = OwnBeat()) answer.beats.push_back(std::move(*own));
  for (const auto& [incarnation, k] : known) {
    const bool self = !answer.beats.empty() && incarnation == answer.beats[0].incarnation;
    if (!self && clock.MonotonicNs() - k.heard_ns < kLiveNs) answer.beats.push_back(k.beat);
  }
  const std::string text = answer.Encode();
  router->Send({routing_id, AsBytes(text)});
}

void ControlLink::Impl::Forget() {
  const uint64_t now = clock.MonotonicNs();
  std::erase_if(known, [&](const auto& entry) { return now - entry.second.heard_ns >= kLiveNs; });
}

ControlLink::ControlLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ControlLink::~ControlLink() = default;

Result<std::unique_ptr<ControlLink>> ControlLink::Start(const Clock& clock, const Options& options) {
  auto impl = std::make_unique<Impl>(clock, options);
  if (!options.listen.empty()) {
    const SocketSecurity security{.self = options.keys, .server_key = "", .keys_dir = options.keys_dir};
    HOLDFAST_ASSIGN(impl->router, Socket::Open(impl->context, Socket::Kind::kRouter, options.listen, kControlBytesMax, 0, security));
    impl->thread = std::thread([i = impl.get()] { i->Run(); });
  }
  return std::unique_ptr<ControlLink>(new ControlLink(std::move(impl)));
}

std::string ControlLink::endpoint() const { return impl_->router ? impl_->router->endpoint() : ""; }
int ControlLink::event_fd() const { return impl_->event.fd(); }

void ControlLink::SetPeers(std::vector<Peer> peers) {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->new_peers = std::move(peers);
  }
  impl_->wake.Set();
}

void ControlLink::SetBeat(const Beat& beat) {
  std::lock_guard lock(impl_->mutex);
  impl_->beat = beat;
  impl_->beat_set_ns = impl_->clock.MonotonicNs();
}

void ControlLink::Hint(const std::string& job, const std::string& stream) {
  {
    std::lock_guard lock(impl_->mutex);
    if (impl_->hints.size() < kHintsMax) impl_->hints.emplace(job, stream);
  }
  impl_->wake.Set();
}

ControlLink::Heard ControlLink::Take() {
  impl_->event.Clear();
  Refused refused = impl_->context.refused();
  std::lock_guard lock(impl_->mutex);
  Heard heard = impl_->heard;
  impl_->heard.hint = false;
  for (auto& [incarnation, beat] : impl_->fresh) heard.beats.push_back(std::move(beat));
  impl_->fresh.clear();
  heard.denied = refused.count;
  heard.denied_names = std::move(refused.names);
  return heard;
}

Result<std::vector<Beat>> AskBeats(const Nonce& root, const Peer& daemon, const CurveKeys& self, uint64_t timeout_ms) {
  const RealClock clock;
  Context context;
  HOLDFAST_ASSIGN(auto dealer, Socket::Open(context, Socket::Kind::kDealer, daemon.endpoint, kControlBytesMax, 0,
                                            {.self = self, .server_key = daemon.public_key, .keys_dir = ""}));
  ControlMessage ask;
  ask.kind = ControlMessage::Kind::kAskBeats;
  ask.root = root;
  const std::string text = ask.Encode();
  const uint64_t deadline_ns = clock.MonotonicNs() + timeout_ms * kMsNs;
  bool asked = false;
  for (uint64_t now = clock.MonotonicNs(); now < deadline_ns; now = clock.MonotonicNs()) {
    asked = asked || dealer->Send({AsBytes(text)});   // fails until the connection stands
    WaitReadable({dealer.get()}, -1, asked ? static_cast<int>((deadline_ns - now) / kMsNs + 1) : 10);
    while (auto frames = dealer->Receive(1)) {
      auto answer = frames->size() == 1 ? ControlMessage::Decode(AsText((*frames)[0])) : Corrupt("");
      if (!answer.ok() || answer->kind != ControlMessage::Kind::kBeats || answer->root != root) continue;
      std::erase_if(answer->beats, [&](const Beat& b) { return b.root != root; });
      return std::move(answer->beats);
    }
  }
  const std::string why = asked ? "it took the question and gave no answer (does it serve another root?)"
                                : "no connection (is holdfastd running there, and is this key allowed?)";
  return MakeError(ErrorCode::kTransient, daemon.node + " at " + daemon.endpoint + " did not answer within " + std::to_string(timeout_ms) + " ms: " + why);
}

}  // namespace holdfast
