// SPDX-License-Identifier: Apache-2.0
//
// A file system in memory that behaves as badly as NFS and power cuts do, and always the same for one seed.
//   - Crash() forgets what was not synced: file data back to the last Sync (or, by the seed, any prefix of what came after),
//     names that were made, renamed or removed since their directory's last SyncDir (each kept or lost, by the seed).
//   - FailOperation injects ENOSPC or EIO at the n-th mutating operation; LoseLinkReply lets a Link succeed and say otherwise.
//   - LateWriteErrors: Append succeeds beyond the space there is, the next Sync or Close reports it, and the Sync after that
//     returns OK over lost bytes - as measured on Linux NFS.
//   - HideFromOpen: names that were missing when last opened stay missing to Open for a while, though List shows them.
// Thread-safe by one mutex; meant for one thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>

#include "ledger/base/file_system.h"

namespace holdfast {

class SimFileSystem final : public FileSystem {
 public:
  explicit SimFileSystem(uint64_t seed = 1);
  ~SimFileSystem() override;

  // ---- faults ----
  // Power cut. Open files become useless (kTransient). Roots made by MakeDirs before the first SyncDir survive like anything else:
  // by luck.
  void Crash();
  // The `n`-th mutating operation from now (1 = the next) fails with errno `err` and does nothing. Names of operations: see ops().
  void FailOperation(uint64_t n, int err);
  // The same, counting only operations of one name ("create", "append", "sync", "close", "link", "syncdir", "unlink", "mkdir").
  void FailOperation(const std::string& name, uint64_t n, int err);
  // The `n`-th Link from now happens, and reports `err`.
  void LoseLinkReply(uint64_t n, int err);
  // Space left for data; LateWriteErrors decides when its end is noticed.
  void SetFreeBytes(uint64_t bytes);
  void SetLateWriteErrors(bool late);
  // Sync and SyncDir return OK and do nothing: an `async` export, a disk that lies. To prove that a test would notice.
  void SetLyingSync(bool lying);
  // How many further Opens of a name fail after one has failed with kNotFound (0: none).
  void SetNegativeLookups(uint32_t opens);
  // Called before every mutating operation with its name and path; an error is returned instead of doing it. For killing a
  // simulated process at any point: make it and everything after it fail. The hook may itself use the file system.
  void SetHook(std::function<Status(const std::string& op, const std::string& path)> hook);
  uint64_t ops() const;                       // mutating operations so far
  void Corrupt(const std::string& path, uint64_t offset, uint8_t mask);  // flips bits of a file at rest

  Result<std::unique_ptr<WritableFile>> Create(const std::string& path, uint32_t mode) override;
  Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override;
  Status Link(const std::string& from, const std::string& to) override;
  Status RenameExclusive(const std::string& from, const std::string& to) override;
  Status Replace(const std::string& from, const std::string& to) override;
  Status Unlink(const std::string& path) override;
  Status RemoveTree(const std::string& path) override;
  Status SyncDir(const std::string& path) override;
  Status MakeDirs(const std::string& path) override;
  Result<std::vector<std::string>> List(const std::string& path) override;
  Result<FileInfo> Stat(const std::string& path) override;
  Result<SpaceInfo> Space(const std::string& path) override;

 private:
  struct Node;
  struct Shared;
  class Writer;
  class Reader;
  using NodePtr = std::shared_ptr<Node>;

  Status Begin(const std::string& op, const std::string& path);  // counts, then the injected faults
  NodePtr Find(const std::string& path) const;
  Result<NodePtr> ParentOf(const std::string& path) const;
  void Settle(const NodePtr& dir);

  mutable std::recursive_mutex mutex_;  // recursive: a hook may let another process act
  std::mt19937_64 random_;
  NodePtr root_;
  uint64_t generation_ = 0;      // crashes so far: handles of an older one are dead
  uint64_t next_inode_ = 1;
  uint64_t ops_ = 0, links_ = 0;
  std::map<uint64_t, int> fail_at_;
  std::map<std::string, std::map<uint64_t, int>> fail_named_;
  std::map<std::string, uint64_t> named_ops_;
  std::map<uint64_t, int> lose_link_at_;
  uint64_t free_bytes_ = UINT64_MAX / 2;
  bool late_errors_ = false, lying_sync_ = false;
  uint32_t negative_opens_ = 0;
  std::map<std::string, uint32_t> negative_;
  std::function<Status(const std::string&, const std::string&)> hook_;
};

}  // namespace holdfast
