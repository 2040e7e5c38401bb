// SPDX-License-Identifier: Apache-2.0
#include "daemon/holdfastd/node_daemon.h"

#include <algorithm>
#include <set>
#include <thread>

#include "daemon/holdfastd/job_board.h"
#include "daemon/node/process.h"
#include "ledger/base/units.h"

namespace holdfast {
namespace {

constexpr int kIdleMs = 1000, kBusyMs = 200;
constexpr uint64_t kLookNs = 1'000'000'000;
constexpr uint64_t kAskMs = 1500;

class NodeDaemon {
 public:
  NodeDaemon(const Clock& clock, const DaemonOptions& options, const std::atomic<int>& stop)
      : clock_(clock), options_(options), stop_(stop), layout_(options.root), log_(clock, layout_, options.name) {}

  Status Run() {
    HOLDFAST_TRY(Begin());
    Status status = OkStatus();
    while (status.ok()) status = Turn();
    return End(status);
  }

 private:
  Status Begin();
  Status OpenRoot();
  Status DescribeSelf();
  Status OpenLink();
  bool Answers(const Incarnation& other) const;
  Status Turn();
  Status End(const Status& why);
  void Speak();
  FileSystem& fs() { return renaming_ != nullptr ? *renaming_ : static_cast<FileSystem&>(posix_); }

  const Clock& clock_;
  const DaemonOptions options_;
  const std::atomic<int>& stop_;
  PosixFileSystem posix_;
  std::unique_ptr<FileSystem> renaming_;
  RootLayout layout_;
  NodeLog log_;
  RootInfo root_;
  std::vector<TaskRunner::Seat> seats_;
  std::vector<DeviceBeat> devices_;       // as they are announced; empty where there is one
  uint64_t host_bytes_ = 0;               // likewise, of all of them
  Incarnation self_;
  std::unique_ptr<ControlLink> link_;
  std::unique_ptr<Membership> others_;
  std::unique_ptr<Supervisor> supervisor_;
  std::unique_ptr<TaskRunner> tasks_;
  std::unique_ptr<JobBoard> board_;
  std::string keys_dir_;
  CurveKeys keys_;
  uint64_t looked_ns_ = 0;
  std::string trouble_;
  std::set<std::string> warned_;
  bool draining_ = false;
};

Status NodeDaemon::OpenRoot() {
  const bool fresh = ReadRoot(posix_, layout_).code() == ErrorCode::kNotFound;
  HOLDFAST_ASSIGN(root_, EnsureRoot(posix_, layout_, self_.nonce));
  if (fresh) log_.Say("made a new root in " + layout_.root() + "; if others work there already, it is not mounted here");
  if (root_.commit == RootInfo::Commit::kRename) {
    renaming_ = MakeRenamingFileSystem(posix_);
    log_.Say(layout_.root() + ": no hard links there, commits are renames");
  }
  return OkStatus();
}

Status NodeDaemon::DescribeSelf() {
  HOLDFAST_ASSIGN(const std::vector<Device> devices, ChooseDevices(options_.device));
  if (!devices[0].note.empty()) log_.Say(devices[0].note);
  const uint32_t cores = std::max(1u, std::thread::hardware_concurrency());
  self_ = DescribeThisProcess(options_.name, "holdfastd", NamesOf(devices));
  self_.version = HOLDFAST_VERSION;
  self_.numerics = devices[0].numerics;
  self_.threads = options_.threads > 0 ? options_.threads : std::max<uint32_t>(1, cores / static_cast<uint32_t>(devices.size()));
  HOLDFAST_ASSIGN(const std::vector<uint64_t> speeds, MeasureSpeeds(devices, static_cast<uint32_t>(self_.threads)));
  const std::vector<uint64_t> memory = ShareMemory(devices, options_.memory_bytes, MemAvailableBytes());
  const uint64_t share = HostShare(MemAvailableBytes(), devices.size());
  for (size_t i = 0; i < devices.size(); ++i) {
    const uint64_t host = devices[i].memory_bytes > 0 ? share : 0;
    host_bytes_ += host;
    self_.speed += speeds[i];
    self_.memory_bytes += memory[i];
    seats_.push_back({devices[i], memory[i]});
    if (devices.size() > 1) devices_.push_back({devices[i].name, devices[i].numerics, memory[i], speeds[i], host});
  }
  return OkStatus();
}

Status NodeDaemon::OpenLink() {
  if (options_.listen == "off") return OkStatus();
  ControlLink::Options o;
  HOLDFAST_ASSIGN(o.listen, ParseListen(options_.listen));
  HOLDFAST_ASSIGN(auto keys, ReadKeys(layout_.KeysDir(), options_.name));
  const bool keyed = fs().Exists(layout_.KeysDir()).ok() && *fs().Exists(layout_.KeysDir());
  if (keyed && !keys) {   // whoever may write here may join: the directory is the trust anchor
    HOLDFAST_TRY(MakeKeys(layout_.KeysDir(), options_.name));
    HOLDFAST_ASSIGN(keys, ReadKeys(layout_.KeysDir(), options_.name));
  }
  if (keys) {
    o.keys = keys_ = *keys;
    keys_dir_ = o.keys_dir = layout_.KeysDir();
  }
  o.root = root_.uuid;
  HOLDFAST_ASSIGN(link_, ControlLink::Start(clock_, o));
  self_.endpoint = link_->endpoint();
  self_.public_key = o.keys.public_key;
  return OkStatus();
}

// Whether a daemon is at that life's endpoint and says that it is this one.
bool NodeDaemon::Answers(const Incarnation& other) const {
  if (link_ == nullptr || other.endpoint.empty()) return false;
  const auto beats = AskBeats(root_.uuid, {other.node, other.endpoint, other.public_key}, keys_, kAskMs);
  return beats.ok() && std::any_of(beats->begin(), beats->end(), [&](const Beat& b) { return b.incarnation == other.nonce; });
}

Status NodeDaemon::Begin() {
  HOLDFAST_TRY(CheckName("--name", options_.name));
  PreferOthersForOomKill();
  HOLDFAST_TRY(DescribeSelf());
  HOLDFAST_TRY(OpenRoot());
  HOLDFAST_TRY(OpenLink());
  HOLDFAST_ASSIGN(others_, Membership::Join(fs(), clock_, {.layout = layout_, .root = root_.uuid, .self = self_, .takeover = options_.takeover,
                                                           .link = link_.get(), .stop = &stop_,
                                                           .answers = [this](const Incarnation& other) { return Answers(other); }}));
  Supervisor::Options s;
  s.bin_dir = BinaryDir();
  s.node = options_.name;
  s.incarnation = self_.nonce;
  // Data edges listen where the control socket does, on a port of their own; without one, on this machine alone.
  s.edge_listen = link_ == nullptr ? "" : self_.endpoint.substr(0, self_.endpoint.rfind(':')) + ":*";
  s.keys_dir = keys_dir_;
  s.renaming = renaming_ != nullptr;
  s.on_event = [this](const Task& task, const std::string& text) { log_.Say(BaseName(task.spec.key.run_dir), text); };
  HOLDFAST_ASSIGN(supervisor_, Supervisor::Make(clock_, s));
  tasks_ = std::make_unique<TaskRunner>(fs(), clock_, *supervisor_, log_,
                                        TaskRunner::Options{seats_, static_cast<uint32_t>(self_.threads), options_.name});
  JobBoard::Options b;
  b.policy.suspect_ns = options_.suspect_s * 1'000'000'000;
  b.policy.tenure_ns = std::min<uint64_t>(b.policy.tenure_ns, b.policy.suspect_ns / 2);
  b.policy.version = HOLDFAST_VERSION;
  b.notify = options_.notify;
  board_ = std::make_unique<JobBoard>(fs(), clock_, layout_, root_.uuid, *others_, log_, b);
  log_.Say("holdfastd " HOLDFAST_VERSION " on " + self_.hostname + " joined " + layout_.root() + " as " + options_.name + ": " + self_.device + " (" + self_.numerics +
           "), " + FormatSize(self_.memory_bytes) + ", " + std::to_string(self_.threads) + " threads" +
           (link_ ? ", listens at " + self_.endpoint + (keys_dir_.empty() ? "" : " with CURVE") : ", no ZeroMQ"));
  Speak();
  return OkStatus();
}

void NodeDaemon::Speak() {
  Beat beat;
  tasks_->Fill(&beat);
  beat.devices = devices_;
  beat.host_bytes = host_bytes_;
  beat.draining = draining_;
  beat.rss_bytes = RssBytes(::getpid()).value_or(0);
  beat.coordinates = board_->Coordinates();
  beat.warnings = others_->Warnings();
  for (const std::string& w : beat.warnings) {
    if (warned_.insert(w).second) log_.Say(w);
  }
  others_->Speak(std::move(beat));
}

Status NodeDaemon::Turn() {
  const bool changed = supervisor_->Poll(supervisor_->AnyRunning() ? kBusyMs : kIdleMs, link_ ? link_->event_fd() : -1);
  if (stop_ != 0) return Stopped("asked to stop by signal " + std::to_string(stop_.load()));
  const Status mine = others_->CheckMine();
  if (mine.code() == ErrorCode::kFenced) return mine;
  const bool hint = others_->Listen();
  tasks_->Watch();
  if (!changed && !hint && clock_.MonotonicNs() - looked_ns_ < kLookNs) return OkStatus();
  looked_ns_ = clock_.MonotonicNs();
  const Status looked = board_->Look();
  draining_ = board_->Drained(options_.name);
  supervisor_->Poll(0);   // what tasks said before they committed what was just read
  if (looked.ok()) tasks_->Reconcile(board_->Active(), !draining_);
  const std::string trouble = !looked.ok() ? looked.error().message : !mine.ok() ? mine.error().message : "";
  if (trouble != trouble_ && !trouble.empty()) log_.Say("the shared directory gives trouble, trying on: " + trouble);
  trouble_ = trouble;
  Speak();
  return OkStatus();
}

// Workers first: they finish their commits and release their stages; then the roles; then the name.
Status NodeDaemon::End(const Status& why) {
  log_.Say(why.error().message + (supervisor_->AnyRunning() ? "; workers finish their commits" : ""));
  supervisor_->StopAll();
  if (why.code() == ErrorCode::kFenced) return why;   // nothing is ours any more
  board_->ReleaseAll("drain");
  const Status left = others_->Leave("drain");
  if (!left.ok()) log_.Say(left.error().message);
  return why;
}

}  // namespace

Status RunDaemon(const Clock& clock, const DaemonOptions& options, const std::atomic<int>& stop) {
  return NodeDaemon(clock, options, stop).Run();
}

}  // namespace holdfast
