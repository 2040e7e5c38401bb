// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/sim_file_system.h"

#include <algorithm>
#include <cerrno>

namespace holdfast {

struct SimFileSystem::Node {
  bool directory = false;
  uint64_t inode = 0;
  uint32_t nlink = 0;
  Bytes data, synced;                       // file: as read now; as on disk
  std::map<std::string, NodePtr> names, durable;  // directory: likewise
};

namespace {

std::vector<std::string> Split(const std::string& path) {
  std::vector<std::string> parts;
  size_t at = 0;
  while (at < path.size()) {
    const size_t slash = std::min(path.find('/', at), path.size());
    if (slash > at) parts.push_back(path.substr(at, slash - at));
    at = slash + 1;
  }
  return parts;
}

Error Gone(const std::string& path) { return ErrnoError(ESTALE, "using " + path + " after a crash"); }

}  // namespace

// ---- handles ----

class SimFileSystem::Writer final : public WritableFile {
 public:
  Writer(SimFileSystem& fs, NodePtr node, std::string path) : fs_(fs), node_(std::move(node)), path_(std::move(path)), generation_(fs.generation_) {}
  Status Append(ByteSpan data) override {
    const std::lock_guard<std::recursive_mutex> lock(fs_.mutex_);
    HOLDFAST_TRY(Use("append"));
    const size_t room = std::min<uint64_t>(data.size(), fs_.free_bytes_);
    fs_.free_bytes_ -= room;
    node_->data.insert(node_->data.end(), data.begin(), data.begin() + static_cast<ptrdiff_t>(room));
    if (room == data.size()) return OkStatus();
    if (!fs_.late_errors_) return ErrnoError(ENOSPC, "writing " + path_);
    late_error_ = true;                       // the bytes look written and are lost
    node_->data.resize(node_->data.size() + data.size() - room, 0);
    return OkStatus();
  }
  Status Sync() override {
    const std::lock_guard<std::recursive_mutex> lock(fs_.mutex_);
    HOLDFAST_TRY(Use("sync"));
    if (std::exchange(late_error_, false)) return ErrnoError(ENOSPC, "fsync of " + path_);
    if (!fs_.lying_sync_) node_->synced = node_->data;
    return OkStatus();
  }
  Status Close() override {
    const std::lock_guard<std::recursive_mutex> lock(fs_.mutex_);
    HOLDFAST_TRY(Use("close"));
    if (std::exchange(late_error_, false)) return ErrnoError(ENOSPC, "closing " + path_);
    return OkStatus();
  }
  void DropCache() override {}

 private:
  Status Use(const char* op) {
    if (generation_ != fs_.generation_) return Gone(path_);
    return fs_.Begin(op, path_);
  }
  SimFileSystem& fs_;
  NodePtr node_;
  std::string path_;
  uint64_t generation_;
  bool late_error_ = false;
};

class SimFileSystem::Reader final : public ReadableFile {
 public:
  Reader(const SimFileSystem& fs, NodePtr node, std::string path)
      : fs_(fs), node_(std::move(node)), path_(std::move(path)), size_(node_->data.size()), generation_(fs.generation_) {}
  uint64_t size() const override { return size_; }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    const std::lock_guard<std::recursive_mutex> lock(fs_.mutex_);
    if (generation_ != fs_.generation_) return Gone(path_);
    if (offset > node_->data.size() || out.size() > node_->data.size() - offset) return holdfast::Corrupt(path_ + ": ends before byte " + std::to_string(offset + out.size()));
    std::copy_n(node_->data.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return OkStatus();
  }
  void DropCache(uint64_t, uint64_t) const override {}

 private:
  const SimFileSystem& fs_;
  NodePtr node_;
  std::string path_;
  uint64_t size_;
  uint64_t generation_;
};

// ---- faults ----

SimFileSystem::SimFileSystem(uint64_t seed) : random_(seed), root_(std::make_shared<Node>()) { root_->directory = true; }
SimFileSystem::~SimFileSystem() = default;

Status SimFileSystem::Begin(const std::string& op, const std::string& path) {
  ++ops_;
  const uint64_t nth = ++named_ops_[op];
  if (const auto hook = hook_) HOLDFAST_TRY(hook(op, path));  // a copy: the hook may replace itself
  if (const auto it = fail_at_.find(ops_); it != fail_at_.end()) return ErrnoError(it->second, op + " " + path);
  auto& named = fail_named_[op];
  if (const auto it = named.find(nth); it != named.end()) return ErrnoError(it->second, op + " " + path);
  return OkStatus();
}

// What survives of one directory: what was synced, and of the rest whatever the disk happened to have written.
void SimFileSystem::Settle(const NodePtr& dir) {
  std::set<std::string> touched;
  for (const auto& [name, node] : dir->names) touched.insert(name);
  for (const auto& [name, node] : dir->durable) touched.insert(name);
  for (const std::string& name : touched) {
    const auto now = dir->names.find(name), disk = dir->durable.find(name);
    const NodePtr a = now == dir->names.end() ? nullptr : now->second, b = disk == dir->durable.end() ? nullptr : disk->second;
    if (a == b || random_() % 2 == 0) continue;
    if (a != nullptr) dir->durable[name] = a;
    else dir->durable.erase(name);
  }
  dir->names = dir->durable;
  for (const auto& [name, node] : dir->names) {
    if (node->directory) {
      Settle(node);
    } else if (node->data != node->synced) {
      const bool extends = node->data.size() >= node->synced.size() && std::equal(node->synced.begin(), node->synced.end(), node->data.begin());
      if (extends) node->synced.assign(node->data.begin(), node->data.begin() + static_cast<ptrdiff_t>(node->synced.size() + random_() % (node->data.size() - node->synced.size() + 1)));
      node->data = node->synced;
    }
  }
}

void SimFileSystem::Crash() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  ++generation_;
  negative_.clear();
  Settle(root_);
}

void SimFileSystem::FailOperation(uint64_t n, int err) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  fail_at_[ops_ + n] = err;
}
void SimFileSystem::FailOperation(const std::string& name, uint64_t n, int err) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  fail_named_[name][named_ops_[name] + n] = err;
}
void SimFileSystem::LoseLinkReply(uint64_t n, int err) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  lose_link_at_[links_ + n] = err;
}
void SimFileSystem::SetFreeBytes(uint64_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  free_bytes_ = bytes;
}
void SimFileSystem::SetLateWriteErrors(bool late) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  late_errors_ = late;
}
void SimFileSystem::SetLyingSync(bool lying) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  lying_sync_ = lying;
}
void SimFileSystem::SetNegativeLookups(uint32_t opens) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  negative_opens_ = opens;
}
void SimFileSystem::SetHook(std::function<Status(const std::string&, const std::string&)> hook) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  hook_ = std::move(hook);
}
uint64_t SimFileSystem::ops() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return ops_;
}
void SimFileSystem::Corrupt(const std::string& path, uint64_t offset, uint8_t mask) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const NodePtr node = Find(path);
  HOLDFAST_CHECK(node != nullptr && offset < node->data.size());
  node->data[offset] ^= mask;
  node->synced = node->data;
}

// ---- names ----

SimFileSystem::NodePtr SimFileSystem::Find(const std::string& path) const {
  NodePtr node = root_;
  for (const std::string& part : Split(path)) {
    if (!node->directory) return nullptr;
    const auto it = node->names.find(part);
    if (it == node->names.end()) return nullptr;
    node = it->second;
  }
  return node;
}

Result<SimFileSystem::NodePtr> SimFileSystem::ParentOf(const std::string& path) const {
  NodePtr node = Find(DirName(path) == "." ? "" : DirName(path));
  if (node == nullptr) return ErrnoError(ENOENT, "looking up " + path);
  if (!node->directory) return ErrnoError(ENOTDIR, "looking up " + path);
  return node;
}

Result<std::unique_ptr<WritableFile>> SimFileSystem::Create(const std::string& path, uint32_t) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  HOLDFAST_TRY(Begin("create", path));
  HOLDFAST_ASSIGN(const NodePtr parent, ParentOf(path));
  NodePtr& node = parent->names[BaseName(path)];
  if (node == nullptr) {
    node = std::make_shared<Node>();
    node->inode = next_inode_++;
    node->nlink = 1;
  }
  node->data.clear();
  return std::unique_ptr<WritableFile>(std::make_unique<Writer>(*this, node, path));
}

Result<std::unique_ptr<ReadableFile>> SimFileSystem::Open(const std::string& path) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (const auto it = negative_.find(path); it != negative_.end()) {
    if (it->second > 0) {
      --it->second;
      return ErrnoError(ENOENT, "opening " + path);
    }
    negative_.erase(it);
  }
  const NodePtr node = Find(path);
  if (node == nullptr) {
    if (negative_opens_ > 0) negative_[path] = negative_opens_;
    return ErrnoError(ENOENT, "opening " + path);
  }
  if (node->directory) return InvalidArgument(path + ": not a regular file");
  return std::unique_ptr<ReadableFile>(std::make_unique<Reader>(*this, node, path));
}

Status SimFileSystem::Link(const std::string& from, const std::string& to) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  ++links_;
  HOLDFAST_TRY(Begin("link", to));
  const NodePtr node = Find(from);
  if (node == nullptr) return ErrnoError(ENOENT, "linking " + to);
  HOLDFAST_ASSIGN(const NodePtr parent, ParentOf(to));
  if (parent->names.contains(BaseName(to))) return ErrnoError(EEXIST, "linking " + to);
  parent->names[BaseName(to)] = node;
  ++node->nlink;
  if (const auto it = lose_link_at_.find(links_); it != lose_link_at_.end()) return ErrnoError(it->second, "linking " + to);
  return OkStatus();
}

Status SimFileSystem::RenameExclusive(const std::string& from, const std::string& to) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  HOLDFAST_TRY(Begin("rename", to));
  const NodePtr node = Find(from);
  if (node == nullptr) return ErrnoError(ENOENT, "renaming " + from);
  HOLDFAST_ASSIGN(const NodePtr parent, ParentOf(to));
  const auto there = parent->names.find(BaseName(to));
  if (there != parent->names.end() && !(node->directory && there->second->directory && there->second->names.empty())) return ErrnoError(EEXIST, "renaming to " + to);
  HOLDFAST_ASSIGN(const NodePtr old_parent, ParentOf(from));
  parent->names[BaseName(to)] = node;
  old_parent->names.erase(BaseName(from));
  return OkStatus();
}

Status SimFileSystem::Replace(const std::string& from, const std::string& to) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  HOLDFAST_TRY(Begin("replace", to));
  const NodePtr node = Find(from);
  if (node == nullptr) return ErrnoError(ENOENT, "renaming " + from);
  HOLDFAST_ASSIGN(const NodePtr parent, ParentOf(to));
  HOLDFAST_ASSIGN(const NodePtr old_parent, ParentOf(from));
  parent->names[BaseName(to)] = node;
  old_parent->names.erase(BaseName(from));
  return OkStatus();
}

Status SimFileSystem::Unlink(const std::string& path) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  HOLDFAST_TRY(Begin("unlink", path));
  HOLDFAST_ASSIGN(const NodePtr parent, ParentOf(path));
  const auto it = parent->names.find(BaseName(path));
  if (it == parent->names.end()) return ErrnoError(ENOENT, "removing " + path);
  if (it->second->directory) return ErrnoError(EISDIR, "removing " + path);
  --it->second->nlink;
  parent->names.erase(it);
  return OkStatus();
}

Status SimFileSystem::RemoveTree(const std::string& path) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  HOLDFAST_TRY(Begin("unlink", path));
  if (const auto parent = ParentOf(path); parent.ok()) (*parent)->names.erase(BaseName(path));
  return OkStatus();
}

Status SimFileSystem::SyncDir(const std::string& path) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  HOLDFAST_TRY(Begin("syncdir", path));
  const NodePtr node = Find(path == "." ? "" : path);
  if (node == nullptr || !node->directory) return ErrnoError(ENOENT, "fsync of directory " + path);
  if (!lying_sync_) node->durable = node->names;
  return OkStatus();
}

Status SimFileSystem::MakeDirs(const std::string& path) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  NodePtr node = root_;
  for (const std::string& part : Split(path)) {
    if (!node->directory) return ErrnoError(ENOTDIR, "making directory " + path);
    const auto it = node->names.find(part);
    if (it == node->names.end()) {
      HOLDFAST_TRY(Begin("mkdir", path));
      auto made = std::make_shared<Node>();
      made->directory = true;
      made->inode = next_inode_++;
      node->names[part] = made;
      node = made;
    } else {
      node = it->second;
    }
  }
  return OkStatus();
}

Result<std::vector<std::string>> SimFileSystem::List(const std::string& path) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const NodePtr node = Find(path == "." ? "" : path);
  if (node == nullptr) return ErrnoError(ENOENT, "listing " + path);
  if (!node->directory) return ErrnoError(ENOTDIR, "listing " + path);
  std::vector<std::string> names;
  for (const auto& [name, child] : node->names) names.push_back(name);
  return names;
}

Result<FileInfo> SimFileSystem::Stat(const std::string& path) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const NodePtr node = Find(path);
  if (node == nullptr) return ErrnoError(ENOENT, "stat of " + path);
  FileInfo info;
  info.size = node->data.size();
  info.inode = node->inode;
  info.nlink = std::max(1u, node->nlink);
  info.is_directory = node->directory;
  return info;
}

Result<SpaceInfo> SimFileSystem::Space(const std::string&) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return SpaceInfo{free_bytes_, UINT64_MAX / 2};
}

}  // namespace holdfast
