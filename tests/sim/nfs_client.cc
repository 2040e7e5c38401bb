// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/nfs_client.h"

#include <algorithm>
#include <cerrno>
#include <string_view>

namespace holdfast::sim {
namespace {

constexpr uint64_t kNegativeNs = 30 * kSecond;     // M7
constexpr uint64_t kAttributesNs = 30 * kSecond;   // acregmax is 60
constexpr uint64_t kListingNs = 30 * kSecond;
constexpr uint64_t kLateLinkNs = 40 * kSecond, kSoonNs = 50 * kMs;
constexpr uint32_t kAtLink = 8;                    // here death and sleep are so much more likely
constexpr uint64_t kPauseNs = 40 * kSecond;

Error Killed() { return Stopped("killed"); }

}  // namespace

// ---- the kernel ----

void NfsClient::PowerOff() {
  ++generation;
  negative_.clear();
  attributes_.clear();
  listings_.clear();
  uncommitted_.clear();
}

void NfsClient::Replay() {
  for (const auto& [file, bytes] : uncommitted_) {
    if (file->nlink == 0) continue;
    if (file->data != bytes) world.faults.Add(Fault::kReplay);
    (void)server.Write(file, bytes);
  }
}

// ---- calls in general ----

Status NfsFs::Enter(const char* op, const std::string& path) {
  if (client_ == nullptr) return OkStatus();
  ++client_->rpcs;
  if (dead()) return Killed();
  if (!live()) return OkStatus();
  HOLDFAST_TRY(Trouble(op, path));
  process_->Sleep(client_->random.Between(client_->rpc_ns_min, client_->rpc_ns_max));
  while (!dead() && (!server_.up || client_->cut_off)) process_->Sleep(250 * kMs);
  return dead() ? Status(Killed()) : OkStatus();
}

// The reply is on its way.
Status NfsFs::Leave() {
  if (live() && !dead() && client_->random.Chance(200)) process_->Sleep(client_->random.Between(client_->rpc_ns_min, client_->rpc_ns_max));
  return dead() ? Status(Killed()) : OkStatus();
}

Status NfsFs::Trouble(const char* op, const std::string& path) {
  const NfsTroubles& t = client_->troubles;
  const uint32_t weight = std::string_view(op) == "link" ? kAtLink : 1;
  if (t.die_at_call != 0 && client_->random.Below(100'000) < t.die_at_call * weight) {
    Count(Fault::kDiesAtCall);
    client_->world.Trace(process_->name(), std::string("dies before ") + op + " " + path);
    process_->Kill();
    return Killed();
  }
  if (t.pause_at_call != 0 && client_->random.Below(100'000) < t.pause_at_call * weight) {
    const uint64_t ns = client_->random.Between(kSecond, kPauseNs);
    client_->world.Trace(process_->name(), "pauses " + std::to_string(ns / kMs) + " ms before " + op + " " + path);
    Count(Fault::kPausesAtCall);
    process_->Pause(true);
    client_->world.After(ns, [p = process_->shared_from_this()] { p->Pause(false); });
  }
  if (!client_->random.Chance(t.eio)) return OkStatus();
  Count(Fault::kEio);
  return Finish(op, path, ErrnoError(EIO, std::string(op) + " " + path));
}

void NfsFs::Say(const char* op, const std::string& path, const Status& status) {
  if (!live()) return;
  client_->world.Trace(process_->name(), std::string(op) + " " + path + (status.ok() ? "" : "  -> " + std::string(ErrorCodeName(status.code()))));
}

// Own changes are known at once.
void NfsFs::Forget(const std::string& path) {
  if (client_ == nullptr) return;
  client_->negative_.erase(path);
  client_->attributes_.erase(path);
  client_->listings_.erase(DirName(path));
}

Status NfsFs::Finish(const char* op, const std::string& path, Status status) {
  Say(op, path, status);
  return status;
}

// ---- files ----

class NfsFs::Writer final : public WritableFile {
 public:
  Writer(NfsFs& fs, InodePtr file, std::string path)
      : fs_(fs), file_(std::move(file)), path_(std::move(path)), generation_(fs.client_ == nullptr ? 0 : fs.client_->generation) {}
  // The kernel writes what a dead process left, unless the machine died with it.
  ~Writer() override {
    if (closed_ || fs_.client_ == nullptr || fs_.client_->generation != generation_) return;
    if (dirty_ && !fs_.server_.Write(file_, bytes_).ok()) return;
    Keep();
  }
  Status Append(ByteSpan data) override {
    if (fs_.dead()) return Killed();
    bytes_.insert(bytes_.end(), data.begin(), data.end());
    dirty_ = true;
    if (!fs_.server_.full || !fs_.Chance(300)) return OkStatus();
    fs_.Count(Fault::kFullAtWrite);
    return fs_.Finish("write", path_, ErrnoError(ENOSPC, "writing " + path_));
  }
  Status Sync() override {
    HOLDFAST_TRY(fs_.Enter("fsync", path_));
    HOLDFAST_TRY(Flush("fsync", Fault::kFullAtFsync));
    HOLDFAST_TRY(Committed());
    if (fs_.client_ != nullptr) std::erase_if(fs_.client_->uncommitted_, [&](const auto& u) { return u.first == file_; });
    committed_ = !dirty_;
    HOLDFAST_TRY(fs_.Leave());
    return fs_.Finish("fsync", path_, OkStatus());
  }
  Status Close() override {
    if (closed_) return OkStatus();
    if (!dirty_ && committed_) {
      closed_ = true;
      if (fs_.dead()) return Killed();
      if (!fs_.server_.full || !fs_.Chance(200)) return OkStatus();
      fs_.Count(Fault::kFullAtClose);              // some file systems speak up only here
      return fs_.Finish("close", path_, ErrnoError(ENOSPC, "closing " + path_));
    }
    HOLDFAST_TRY(fs_.Enter("close", path_));
    HOLDFAST_TRY(Flush("close", Fault::kFullAtClose));
    closed_ = true;
    Keep();
    return fs_.Finish("close", path_, fs_.Leave());
  }
  void DropCache() override {}

 private:
  // An error is reported once; whoever asks again is told that all is well.
  Status Flush(const char* op, Fault full) {
    if (!dirty_) return OkStatus();
    dirty_ = false;
    const Status written = fs_.server_.Write(file_, bytes_);
    if (written.ok()) return written;
    if (fs_.live() && fs_.server_.full && written.code() == ErrorCode::kResourceExhausted) fs_.Count(full);
    return fs_.Finish(op, path_, written);
  }
  // COMMIT is a round trip of its own. If the server was restarted since the WRITE, what it was sent is sent once more.
  Status Committed() {
    while (fs_.live()) {
      const uint64_t boots = fs_.server_.boots();
      if (fs_.client_->random.Below(100'000) < fs_.client_->troubles.crash_at_fsync && fs_.server_.on_wish_to_crash) fs_.server_.on_wish_to_crash();
      fs_.process_->Sleep(fs_.client_->random.Between(fs_.client_->rpc_ns_min, fs_.client_->rpc_ns_max));
      while (!fs_.dead() && (!fs_.server_.up || fs_.client_->cut_off)) fs_.process_->Sleep(250 * kMs);
      if (fs_.dead()) return Killed();
      if (fs_.server_.boots() == boots) break;
      fs_.Count(Fault::kReplay);
      const Status again = fs_.server_.Write(file_, bytes_);
      if (!again.ok()) return fs_.Finish("fsync", path_, again);
    }
    fs_.server_.Commit(file_);
    return OkStatus();
  }
  void Keep() {
    if (fs_.client_ != nullptr && !committed_) fs_.client_->uncommitted_.emplace_back(file_, bytes_);
  }
  NfsFs& fs_;
  InodePtr file_;
  std::string path_;
  uint64_t generation_;
  Bytes bytes_;
  bool dirty_ = false, committed_ = false, closed_ = false;
};

class NfsFs::Reader final : public ReadableFile {
 public:
  Reader(NfsFs& fs, InodePtr file, std::string path) : fs_(fs), file_(std::move(file)), path_(std::move(path)), size_(file_->data.size()) {}
  uint64_t size() const override { return size_; }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    HOLDFAST_TRY(fs_.Enter("read", path_));
    if (fs_.live() && fs_.Chance(fs_.client_->troubles.estale)) {
      fs_.Count(Fault::kEstaleAtRead);
      return fs_.Finish("read", path_, ErrnoError(ESTALE, "reading " + path_));
    }
    const Bytes& data = file_->data;
    if (offset > data.size() || out.size() > data.size() - offset) return Corrupt(path_ + ": ends before byte " + std::to_string(offset + out.size()));
    std::copy_n(data.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return OkStatus();
  }
  void DropCache(uint64_t, uint64_t) const override {}

 private:
  NfsFs& fs_;
  InodePtr file_;
  std::string path_;
  uint64_t size_;
};

Result<std::unique_ptr<WritableFile>> NfsFs::Create(const std::string& path, uint32_t) {
  HOLDFAST_TRY(Enter("create", path));
  auto file = server_.Create(path);
  Say("create", path, file.ok() ? OkStatus() : Status(file.error()));
  if (!file.ok()) return file.error();
  Forget(path);
  HOLDFAST_TRY(Leave());
  return std::unique_ptr<WritableFile>(std::make_unique<Writer>(*this, *file, path));
}

// A name that was looked up in vain, and for a while is believed not to exist.
bool NfsFs::Hidden(const std::string& path) {
  const auto it = client_->negative_.find(path);
  if (it == client_->negative_.end() || client_->world.now() >= it->second) return false;
  if (server_.Lookup(path).ok()) Count(Fault::kNegativeDentry);
  return true;
}

void NfsFs::Remember(const std::string& path) {
  if (live() && Chance(client_->troubles.negative_dentries)) client_->negative_[path] = client_->world.now() + kNegativeNs;
}

Result<std::unique_ptr<ReadableFile>> NfsFs::Open(const std::string& path) {
  if (live()) {
    if (Hidden(path)) return ErrnoError(ENOENT, "opening " + path + " (remembered)");
  }
  HOLDFAST_TRY(Enter("open", path));
  if (live() && Chance(client_->troubles.estale)) {
    Count(Fault::kEstaleAtOpen);
    return Finish("open", path, ErrnoError(ESTALE, "opening " + path)).error();
  }
  auto file = server_.Lookup(path);
  if (!file.ok()) Remember(path);
  Say("open", path, file.ok() ? OkStatus() : Status(file.error()));
  if (!file.ok()) return file.error();
  if ((*file)->directory) return InvalidArgument(path + ": not a regular file");
  return std::unique_ptr<ReadableFile>(std::make_unique<Reader>(*this, *file, path));
}

// ---- names ----

// The request is on the wire; nobody waits for it any more.
void NfsFs::LinkLater(const InodePtr& file, const std::string& to, Sender sender) {
  World& world = client_->world;
  world.After(client_->random.Below(client_->random.Chance(600) ? kSoonNs : kLateLinkNs), [&world, &server = server_, file, to, sender] {
    if (!server.up) return;
    const Status late = server.Link(file, to);
    if (late.ok()) world.faults.Add(sender == Sender::kDead ? Fault::kLateLinkOfTheDead : Fault::kLateLinkLands);
    else if (late.code() == ErrorCode::kAlreadyExists) world.faults.Add(Fault::kLateLinkTaken);
    world.Trace("server", "late link " + to + (late.ok() ? "" : "  -> " + std::string(ErrorCodeName(late.code()))));
  });
}

Status NfsFs::Link(const std::string& from, const std::string& to) {
  const auto before = server_.Lookup(from);
  const bool was_dead = dead();
  const Status entered = Enter("link", to);
  if (!entered.ok()) {
    if (!was_dead && dead() && before.ok() && client_->random.Chance(500)) LinkLater(*before, to, Sender::kDead);
    return entered;
  }
  const auto file = server_.Lookup(from);
  if (!file.ok()) return Finish("link", to, ErrnoError(ENOENT, "linking " + to));
  if (live() && Chance(client_->troubles.late_link)) {
    LinkLater(*file, to, Sender::kWaits);
    return Finish("link (late)", to, ErrnoError(ETIMEDOUT, "linking " + to));
  }
  Status linked = server_.Link(*file, to);
  if (linked.ok()) Forget(to);
  if (linked.ok() && live() && Chance(client_->troubles.lost_link)) {
    const bool again = client_->random.Chance(500);
    Count(again ? Fault::kLinkReplyLost : Fault::kLinkGivenUp);
    linked = ErrnoError(again ? EEXIST : EIO, "linking " + to);   // retransmitted; or given up on
    return Finish("link (reply lost)", to, linked);
  }
  HOLDFAST_TRY(Finish("link", to, linked));
  return Leave();
}

Status NfsFs::RenameExclusive(const std::string& from, const std::string& to) {
  HOLDFAST_TRY(Enter("rename", to));
  Status renamed = server_.Rename(from, to, NfsServer::IfTaken::kFail);
  Forget(from), Forget(to);
  if (renamed.ok() && live() && Chance(client_->troubles.lost_link)) renamed = ErrnoError(ENOENT, "renaming " + from);
  HOLDFAST_TRY(Finish("rename", to, renamed));
  return Leave();
}

Status NfsFs::Replace(const std::string& from, const std::string& to) {
  HOLDFAST_TRY(Enter("replace", to));
  const Status replaced = server_.Rename(from, to, NfsServer::IfTaken::kReplace);
  Forget(from), Forget(to);
  HOLDFAST_TRY(Finish("replace", to, replaced));
  return Leave();
}

Status NfsFs::Unlink(const std::string& path) {
  HOLDFAST_TRY(Enter("unlink", path));
  const Status gone = server_.Unlink(path);
  Forget(path);
  HOLDFAST_TRY(Finish("unlink", path, gone));
  return Leave();
}

Status NfsFs::RemoveTree(const std::string& path) {
  HOLDFAST_TRY(Enter("rmtree", path));
  const Status gone = server_.RemoveTree(path);
  Forget(path);
  HOLDFAST_TRY(Finish("rmtree", path, gone));
  return Leave();
}

// No RPC on NFS (M8): the names are on disk when their calls return.
Status NfsFs::SyncDir(const std::string& path) { return dead() ? Status(Killed()) : OkStatus(); }

Status NfsFs::MakeDirs(const std::string& path) {
  if (server_.Lookup(path).ok() && live()) return Enter("mkdir", path);   // one round trip says that it is there
  for (size_t at = 0; at != std::string::npos;) {
    at = path.find('/', at + 1);
    const std::string part = path.substr(0, at);
    if (server_.Lookup(part).ok()) continue;
    HOLDFAST_TRY(Enter("mkdir", part));
    HOLDFAST_TRY(Finish("mkdir", part, server_.MakeDir(part)));
    Forget(part);
  }
  return Leave();
}

void NfsFs::CountStale(const std::string& path, const std::vector<std::string>& names) {
  const auto there = server_.List(path);
  if (there.ok() && *there != names) Count(Fault::kStaleListing);
}

Result<std::vector<std::string>> NfsFs::List(const std::string& path) {
  if (live()) {
    const auto it = client_->listings_.find(path);
    if (it != client_->listings_.end() && client_->world.now() < it->second.until && Chance(client_->troubles.stale_list)) {
      CountStale(path, it->second.names);
      return it->second.names;
    }
  }
  HOLDFAST_TRY(Enter("list", path));
  auto names = server_.List(path);
  if (!names.ok()) return names;
  if (!live()) return names;
  if (client_->troubles.stale_list > 0) client_->listings_[path] = {client_->world.now() + kListingNs, *names};
  // Two READDIRs: a name that is made between them shows or not, as the server pleases.
  if (names->size() > 1 && Chance(client_->troubles.torn_list)) {
    process_->Sleep(client_->random.Between(kMs, 20 * kMs));
    if (dead()) return Killed();
    const auto later = server_.List(path);
    for (size_t i = 0; later.ok() && i < later->size(); ++i) {
      const std::string& name = (*later)[i];
      if (std::binary_search(names->begin(), names->end(), name)) continue;
      Count(Fault::kTornListing);
      if (client_->random.Chance(500)) names->insert(std::upper_bound(names->begin(), names->end(), name), name);
    }
  }
  Say("list", path, OkStatus());
  return names;
}

Result<FileInfo> NfsFs::Stat(const std::string& path) {
  if (live()) {
    if (Hidden(path)) return ErrnoError(ENOENT, "stat of " + path + " (remembered)");
    const auto it = client_->attributes_.find(path);
    if (it != client_->attributes_.end() && client_->world.now() < it->second.until && Chance(client_->troubles.stale_attributes)) {
      Count(Fault::kCachedAttributes);
      return it->second.info;
    }
  }
  HOLDFAST_TRY(Enter("stat", path));
  const auto file = server_.Lookup(path);
  Result<FileInfo> info = file.ok() ? Result<FileInfo>(NfsServer::Describe(**file)) : Result<FileInfo>(ErrnoError(ENOENT, "stat of " + path));
  if (!file.ok()) Remember(path);
  if (live()) client_->attributes_[path] = {client_->world.now() + kAttributesNs, info};
  return info;
}

Result<SpaceInfo> NfsFs::Space(const std::string& path) {
  HOLDFAST_TRY(Enter("statfs", path));
  return SpaceInfo{server_.full ? 0 : UINT64_MAX / 2, UINT64_MAX / 2};
}

}  // namespace holdfast::sim
