// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/nfs_server.h"

#include <algorithm>

namespace holdfast::sim {

NfsServer::NfsServer(Export kind, uint64_t seed) : kind_(kind), random_(seed), root_(std::make_shared<Inode>()) { root_->directory = true; }

InodePtr NfsServer::Find(const std::string& path) const {
  InodePtr node = root_;
  for (size_t at = 0; at < path.size();) {
    const size_t slash = std::min(path.find('/', at), path.size());
    if (slash > at) {
      if (!node->directory) return nullptr;
      const auto it = node->names.find(path.substr(at, slash - at));
      if (it == node->names.end()) return nullptr;
      node = it->second;
    }
    at = slash + 1;
  }
  return node;
}

Result<NfsServer::Place> NfsServer::ParentOf(const std::string& path) const {
  InodePtr dir = Find(DirName(path));
  if (dir == nullptr) return ErrnoError(ENOENT, "looking up " + path);
  if (!dir->directory) return ErrnoError(ENOTDIR, "looking up " + path);
  return Place{std::move(dir), BaseName(path)};
}

Status NfsServer::MayWrite(const std::string& path) const {
  if (!read_only) return OkStatus();
  Count(Fault::kReadOnly);
  return ErrnoError(EROFS, "changing " + path);
}

// A sync export replies when the name is on disk.
void NfsServer::Changed(const char* op, const std::string& path, const InodePtr& dir) {
  dir->mtime = ++clock_;
  ++names_made_;
  if (dir->listing_holds) {
    const std::string name = BaseName(path);
    const bool at_the_end = dir->listed.size() + 1 == dir->names.size() && dir->names.rbegin()->first == name;
    if (at_the_end) dir->listed.push_back(name);
    else dir->listing_holds = dir->names.contains(name) && dir->listed.size() == dir->names.size();   // truncated, or linked over
  }
  if (kind_ == Export::kSync) {
    const std::string name = BaseName(path);
    if (const auto it = dir->names.find(name); it != dir->names.end()) dir->on_disk[name] = it->second;
    else dir->on_disk.erase(name);
  }
  if (on_name) on_name(op, path);
}

Result<InodePtr> NfsServer::Lookup(const std::string& path) const {
  const std::lock_guard lock(mutex_);
  InodePtr found = Find(path);
  if (found == nullptr) return ErrnoError(ENOENT, "looking up " + path);
  return found;
}

Result<InodePtr> NfsServer::Create(const std::string& path) {
  const std::lock_guard lock(mutex_);
  HOLDFAST_TRY(MayWrite(path));
  if (full && random_.Chance(500)) {
    Count(Fault::kFullAtCreate);
    return ErrnoError(NoSpace(), "creating " + path);
  }
  HOLDFAST_ASSIGN(const Place place, ParentOf(path));
  InodePtr& file = place.dir->names[place.name];
  const bool made = file == nullptr;
  if (made) {
    file = std::make_shared<Inode>();
    file->id = next_id_++;
    file->nlink = 1;
  }
  file->data.clear();
  file->mtime = ++clock_;
  const InodePtr result = file;
  Changed(made ? "create" : "truncate", path, place.dir);
  return result;
}

// No room: a part arrives, the rest reads as zeros, and only this call says so.
Status NfsServer::Write(const InodePtr& file, ByteSpan whole) {
  const std::lock_guard lock(mutex_);
  HOLDFAST_TRY(MayWrite("a file"));
  file->mtime = ++clock_;
  file->data.assign(whole.begin(), whole.end());
  if (!full || random_.Chance(300)) return OkStatus();   // somebody else has just removed something
  const size_t kept = random_.Below(whole.size() + 1);
  std::fill(file->data.begin() + static_cast<ptrdiff_t>(kept), file->data.end(), uint8_t{0});
  return ErrnoError(NoSpace(), "writing");
}

void NfsServer::Commit(const InodePtr& file) {
  const std::lock_guard lock(mutex_);
  if (kind_ == Export::kSync) file->disk = file->data;
}

Status NfsServer::Link(const InodePtr& file, const std::string& to) {
  const std::lock_guard lock(mutex_);
  HOLDFAST_TRY(MayWrite(to));
  HOLDFAST_ASSIGN(const Place place, ParentOf(to));
  if (place.dir->names.contains(place.name)) return ErrnoError(EEXIST, "linking " + to);
  if (file->nlink == 0) return ErrnoError(ESTALE, "linking " + to);
  place.dir->names[place.name] = file;
  ++file->nlink;
  Changed("link", to, place.dir);
  return OkStatus();
}

Status NfsServer::Rename(const std::string& from, const std::string& to, IfTaken taken) {
  const std::lock_guard lock(mutex_);
  HOLDFAST_TRY(MayWrite(to));
  const InodePtr node = Find(from);
  if (node == nullptr) return ErrnoError(ENOENT, "renaming " + from);
  HOLDFAST_ASSIGN(const Place target, ParentOf(to));
  HOLDFAST_ASSIGN(const Place source, ParentOf(from));
  const auto there = target.dir->names.find(target.name);
  if (there != target.dir->names.end()) {
    const bool empty_dir = node->directory && there->second->directory && there->second->names.empty();
    if (taken == IfTaken::kFail && !empty_dir) return ErrnoError(EEXIST, "renaming to " + to);
    --there->second->nlink;
  }
  target.dir->names[target.name] = node;
  source.dir->names.erase(source.name);
  Changed("rename-away", from, source.dir);
  Changed(taken == IfTaken::kFail ? "rename" : "replace", to, target.dir);
  return OkStatus();
}

Status NfsServer::Unlink(const std::string& path) {
  const std::lock_guard lock(mutex_);
  HOLDFAST_TRY(MayWrite(path));
  HOLDFAST_ASSIGN(const Place place, ParentOf(path));
  const auto it = place.dir->names.find(place.name);
  if (it == place.dir->names.end()) return ErrnoError(ENOENT, "removing " + path);
  if (it->second->directory) return ErrnoError(EISDIR, "removing " + path);
  --it->second->nlink;
  place.dir->names.erase(it);
  Changed("unlink", path, place.dir);
  return OkStatus();
}

Status NfsServer::RemoveTree(const std::string& path) {
  const std::lock_guard lock(mutex_);
  HOLDFAST_TRY(MayWrite(path));
  const auto place = ParentOf(path);
  if (!place.ok() || place->dir->names.erase(place->name) == 0) return OkStatus();
  Changed("unlink", path, place->dir);
  return OkStatus();
}

Status NfsServer::MakeDir(const std::string& path) {
  const std::lock_guard lock(mutex_);
  if (const InodePtr there = Find(path)) return there->directory ? OkStatus() : Status(ErrnoError(ENOTDIR, "making directory " + path));
  HOLDFAST_TRY(MayWrite(path));
  HOLDFAST_ASSIGN(const Place place, ParentOf(path));
  auto made = std::make_shared<Inode>();
  made->directory = true;
  made->id = next_id_++;
  made->nlink = 1;
  place.dir->names[place.name] = made;
  Changed("mkdir", path, place.dir);
  return OkStatus();
}

Result<std::vector<std::string>> NfsServer::List(const std::string& path) const {
  const std::lock_guard lock(mutex_);
  const InodePtr dir = Find(path);
  if (dir == nullptr) return ErrnoError(ENOENT, "listing " + path);
  if (!dir->directory) return ErrnoError(ENOTDIR, "listing " + path);
  if (!dir->listing_holds) {
    dir->listed.clear();
    for (const auto& [name, node] : dir->names) dir->listed.push_back(name);
    dir->listing_holds = true;
  }
  return dir->listed;
}

FileInfo NfsServer::Describe(const Inode& inode) {
  return {.size = inode.data.size(), .mtime_ns = inode.mtime, .inode = inode.id, .device = 1, .nlink = std::max(1u, inode.nlink), .is_directory = inode.directory};
}

// ---- what happens to it ----

void NfsServer::Settle(const InodePtr& dir, std::set<uint64_t>* seen) {
  if (kind_ == Export::kAsync) {
    std::set<std::string> touched;
    for (const auto& [name, node] : dir->names) touched.insert(name);
    for (const auto& [name, node] : dir->on_disk) touched.insert(name);
    for (const std::string& name : touched) {
      const auto now = dir->names.find(name), disk = dir->on_disk.find(name);
      const InodePtr a = now == dir->names.end() ? nullptr : now->second, b = disk == dir->on_disk.end() ? nullptr : disk->second;
      if (a == b) continue;
      if (random_.Chance(500)) {
        if (a != nullptr) Count(Fault::kServerForgetsName);
        continue;
      }
      if (a != nullptr) dir->on_disk[name] = a;
      else dir->on_disk.erase(name);
    }
  }
  dir->names = dir->on_disk;
  dir->listing_holds = false;
  for (const auto& [name, node] : dir->names) {
    if (!seen->insert(node->id).second) continue;
    if (node->directory) {
      Settle(node, seen);
      continue;
    }
    const bool extends = node->data.size() > node->disk.size() && std::equal(node->disk.begin(), node->disk.end(), node->data.begin());
    if (extends) node->disk.assign(node->data.begin(), node->data.begin() + static_cast<ptrdiff_t>(random_.Between(node->disk.size(), node->data.size())));
    if (node->data != node->disk) Count(Fault::kServerForgetsData);
    node->data = node->disk;
  }
}

void NfsServer::Crash() {
  const std::lock_guard lock(mutex_);
  ++boots_;
  std::set<uint64_t> seen;
  Settle(root_, &seen);
}

void NfsServer::Flush(const InodePtr& dir, std::set<uint64_t>* seen) {
  dir->on_disk = dir->names;
  for (const auto& [name, node] : dir->names) {
    if (!seen->insert(node->id).second) continue;
    if (node->directory) Flush(node, seen);
    else if (node->disk.size() != node->data.size() || node->disk != node->data) node->disk = node->data;
  }
}

void NfsServer::WriteBack() {
  const std::lock_guard lock(mutex_);
  std::set<uint64_t> seen;
  Flush(root_, &seen);
}

}  // namespace holdfast::sim
