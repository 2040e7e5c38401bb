// SPDX-License-Identifier: Apache-2.0
#include "daemon/holdfastd/membership.h"

#include <algorithm>

#include "daemon/core/cluster.h"
#include "daemon/node/process.h"

namespace holdfast {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kBeatFileNs = 2 * kSecondNs, kRosterNs = 5 * kSecondNs, kCheckNs = kSecondNs;
constexpr uint64_t kForgottenNs = 600 * kSecondNs;    // then its file is read rarely
constexpr uint64_t kRareNs = 30 * kSecondNs;
constexpr uint64_t kTwinWatchMs = 7000;               // three beats of a twin on another machine, and a little
constexpr uint64_t kStrangerNs = 35 * kSecondNs;      // longer than a directory cache hides a new name

Status Ignore(const Record&, const Slot&) { return OkStatus(); }

}  // namespace

Membership::Membership(FileSystem& fs, const Clock& clock, Options options)
    : fs_(fs), clock_(clock), options_(std::move(options)), roster_(fs, options_.layout, options_.root),
      born_ns_(clock.MonotonicNs()), listened_ns_(born_ns_) {}

Result<std::unique_ptr<Membership>> Membership::Join(FileSystem& fs, const Clock& clock, Options options) {
  std::unique_ptr<Membership> m(new Membership(fs, clock, std::move(options)));
  const Options& o = m->options_;
  HOLDFAST_TRY(m->roster_.Refresh());
  if (!o.takeover) HOLDFAST_TRY(m->RefuseTwin());
  HOLDFAST_TRY(fs.MakeDirs(o.layout.streams().TmpDir(o.self.nonce)));
  HOLDFAST_TRY(fs.MakeDirs(o.layout.BeatsDir()));
  StreamWriter::Options claim;
  claim.job = o.root;
  claim.claim = {.epoch = 0, .incarnation = o.self.nonce, .node = o.self.node, .reason = o.takeover ? "takeover" : "start", .pid = o.self.pid,
                 .numerics = o.self.numerics};
  const Nonce expected = m->roster_.nodes().contains(o.self.node) ? m->roster_.nodes().at(o.self.node).incarnation.nonce : Nonce{};
  claim.may_take_over = [&, expected](const Claim& current) -> Status {
    if (o.takeover || current.incarnation == expected) return OkStatus();
    return InvalidArgument("--name " + o.self.node + ": another holdfastd took this name a moment ago; choose another name, or --takeover");
  };
  HOLDFAST_ASSIGN(m->writer_, StreamWriter::Open(fs, o.layout.streams(), clock, m->roster_.ReaderOf(o.self.node), Ignore, claim,
                                                 {MakeControl({.cls = RecordClass::kIncarnation}, o.self.ToJson())}));
  HOLDFAST_TRY(m->roster_.Refresh());
  m->Introduce();
  return m;
}

// Is there a daemon of our name that lives? In this boot of this machine its process tells; elsewhere the daemon itself, if it can be reached, or
// its beats. Not its beats alone: those of a living twin did not move for seven seconds (two NFSv4 clients of one host name).
Status Membership::RefuseTwin() {
  const auto it = roster_.nodes().find(options_.self.node);
  if (it == roster_.nodes().end() || it->second.released) return OkStatus();
  const Incarnation& other = it->second.incarnation;
  const Error refusal{ErrorCode::kInvalidArgument, "--name " + options_.self.node + ": a holdfastd of this name lives (process " + std::to_string(other.pid) + " on " +
                                        other.hostname + "); choose another --name, stop that one, or take its place with --takeover"};
  const Liveness life = ProbeIncarnation(other);
  if (life == Liveness::kDead) return OkStatus();
  if (life == Liveness::kAlive || (options_.answers && options_.answers(other))) return refusal;
  const auto count = [&]() -> uint64_t {
    const auto bytes = fs_.ReadFile(options_.layout.Beat(other.nonce), kBeatBytesMax);
    const auto beat = bytes.ok() ? Beat::Decode(AsText(*bytes)) : Result<Beat>(Error{});
    return beat.ok() ? beat->count : 0;
  };
  const uint64_t before = count();
  RealClock sleeper;
  for (uint64_t waited = 0; waited < kTwinWatchMs; waited += 500) {
    if (options_.stop != nullptr && options_.stop->load() != 0) return Stopped("asked to stop");
    sleeper.SleepMs(500);
    if (count() != before) return refusal;
  }
  return OkStatus();
}

Status Membership::CheckMine() {
  if (clock_.MonotonicNs() - checked_ns_ < kCheckNs) return OkStatus();
  checked_ns_ = clock_.MonotonicNs();
  StreamReader* reader = roster_.ReaderOf(options_.self.node);
  HOLDFAST_TRY(reader->Poll(Ignore));
  const Claim& claim = reader->state().claim;
  if (claim.incarnation == options_.self.nonce) return OkStatus();
  return Fenced("the name " + options_.self.node + " was taken over by process " + std::to_string(claim.pid) + " (" + claim.reason +
                "); this daemon stops. Start it again under another --name, or with --takeover");
}

void Membership::Speak(Beat beat) {
  const Incarnation& self = options_.self;
  beat.root = options_.root;
  beat.node = self.node;
  beat.incarnation = self.nonce;
  beat.count = ++count_;
  beat.wall_ns = clock_.WallNs();
  beat.hostname = self.hostname;
  beat.endpoint = self.endpoint;
  beat.public_key = self.public_key;
  beat.version = self.version;
  beat.numerics = self.numerics;
  beat.device = self.device;
  beat.pid = self.pid;
  beat.memory_bytes = self.memory_bytes;
  beat.speed = self.speed;
  beat.threads = self.threads;
  own_ = std::move(beat);
  if (options_.link != nullptr) options_.link->SetBeat(own_);
  if (clock_.MonotonicNs() - written_ns_ < kBeatFileNs) return;
  written_ns_ = clock_.MonotonicNs();
  // Not fsynced: a beat that is lost is followed by another one.
  const std::string tmp = JoinPath(options_.layout.streams().TmpDir(self.nonce), "beat");
  const std::string text = own_.Encode();
  auto file = fs_.Create(tmp, 0644);
  if (!file.ok() || !(*file)->Append(AsBytes(text)).ok() || !(*file)->Close().ok()) return;
  (void)fs_.Replace(tmp, options_.layout.Beat(self.nonce));
}

void Membership::Take(const Beat& beat, bool over_link) {
  if (beat.root != options_.root || beat.incarnation == options_.self.nonce) return;
  const uint64_t now = clock_.MonotonicNs();
  const auto known = roster_.nodes().find(beat.node);
  if (known == roster_.nodes().end() || known->second.incarnation.nonce != beat.incarnation) {
    if (over_link) strangers_.emplace(beat.node, now);   // a new life that the directory has not shown yet, or another directory
    return;
  }
  strangers_.erase(beat.node);
  Heard& h = heard_[beat.node];
  if (h.beat.incarnation != beat.incarnation) h = Heard{};
  if (over_link) h.link_ns = now;
  if (beat.count <= h.beat.count) return;
  h.beat = beat;
  h.moved_ns = now;
}

void Membership::Introduce() {
  if (options_.link == nullptr) return;
  std::vector<Peer> peers;
  for (const auto& [name, node] : roster_.nodes()) {
    if (name == options_.self.node || node.released || node.incarnation.endpoint.empty()) continue;
    peers.push_back({name, node.incarnation.endpoint, node.incarnation.public_key});
  }
  options_.link->SetPeers(std::move(peers));
}

bool Membership::Listen() {
  const uint64_t now = listened_ns_ = clock_.MonotonicNs();
  bool hint = false;
  if (options_.link != nullptr) {
    ControlLink::Heard heard = options_.link->Take();
    for (const Beat& beat : heard.beats) Take(beat, /*over_link=*/true);
    hint = heard.hint;
    dropped_ = heard.dropped;
    denied_ = heard.denied;
    denied_names_ = std::move(heard.denied_names);
  }
  const bool strange = std::any_of(strangers_.begin(), strangers_.end(), [&](const auto& s) { return now - s.second < kStrangerNs; });
  if (now - roster_ns_ >= (strange ? kSecondNs : kRosterNs)) {
    roster_ns_ = now;
    if (roster_.Refresh().ok()) Introduce();
  }
  ReadFiles();
  return hint;
}

void Membership::ReadFiles() {
  const uint64_t now = clock_.MonotonicNs(), link_silent_ns = Pace().link_silent_ns;
  for (const auto& [name, node] : roster_.nodes()) {
    if (name == options_.self.node || node.released) continue;
    Heard& h = heard_[name];
    if (h.link_ns != 0 && now - h.link_ns < link_silent_ns) continue;
    const bool forgotten = now - std::max(h.moved_ns, born_ns_) > kForgottenNs;
    if (h.file_ns != 0 && now - h.file_ns < (forgotten ? kRareNs : kBeatFileNs)) continue;
    h.file_ns = now;
    const auto bytes = fs_.ReadFile(options_.layout.Beat(node.incarnation.nonce), kBeatBytesMax);
    if (!bytes.ok()) continue;
    const auto beat = Beat::Decode(AsText(*bytes));
    if (beat.ok()) Take(*beat, /*over_link=*/false);
  }
}

void Membership::Hint(const std::string& job) {
  if (options_.link != nullptr) options_.link->Hint(job, RunLayout::JobStream());
}

Status Membership::Leave(const std::string& reason) {
  const Status said = writer_->ReleaseStream(reason);
  (void)fs_.Unlink(options_.layout.Beat(options_.self.nonce));
  (void)fs_.RemoveTree(options_.layout.streams().TmpDir(options_.self.nonce));
  return said;
}

BeatPace Membership::Pace() const {
  return BeatPaceOf(static_cast<size_t>(std::count_if(roster_.nodes().begin(), roster_.nodes().end(), [](const auto& n) { return !n.second.released; })));
}

std::vector<const Beat*> Membership::Live(uint64_t silence_ns) const {
  std::vector<const Beat*> live = {&own_};
  for (const auto& [name, h] : heard_) {
    if (h.moved_ns != 0 && listened_ns_ < h.moved_ns + silence_ns) live.push_back(&h.beat);
  }
  return live;
}

std::vector<std::string> Membership::Warnings() const {
  std::vector<std::string> out;
  const uint64_t now = clock_.MonotonicNs();
  for (const auto& [name, since] : strangers_) {
    const auto h = heard_.find(name);
    const bool twin = h != heard_.end() && now - h->second.moved_ns < kStrangerNs;   // a fenced life of a node that we do hear
    if (now - since < kStrangerNs || twin) continue;
    out.push_back("node " + name + " speaks to this node but its record is not in " + options_.layout.root() +
                  ": the root is not shared with it; mount the same directory on both and restart it");
  }
  const std::string torch = TorchOf(options_.self.numerics);
  for (const auto& [name, h] : heard_) {
    const bool lives = h.moved_ns != 0 && now - h.moved_ns < kStrangerNs;
    if (!lives || (h.beat.version == options_.self.version && TorchOf(h.beat.numerics) == torch)) continue;
    out.push_back("node " + name + " runs holdfast " + h.beat.version + " with " + TorchOf(h.beat.numerics) + ", this node holdfast " + options_.self.version +
                  " with " + torch + ": the two never work on one job; install the same on both");
  }
  if (denied_ > 0) {
    std::string who;
    for (const std::string& name : denied_names_) who += (who.empty() ? " (last: " : ", ") + name;
    out.push_back(std::to_string(denied_) + " handshake(s) with a wrong key or none were refused" + (who.empty() ? "" : who + ")"));
  }
  if (dropped_ > 0) out.push_back(std::to_string(dropped_) + " message(s) that make no sense were dropped");
  return out;
}

}  // namespace holdfast
