// SPDX-License-Identifier: Apache-2.0
//
// The world as the ledger sees it: a directory tree with NFS in its contract. PosixFileSystem is the real one;
// a simulated one can stand in its place. What every implementation must honour:
//   - Link and RenameExclusive are atomic, but may report an error after having succeeded (a lost reply);
//     callers look at the target before they believe a failure.
//   - Write errors may appear only at Sync or Close. After any error of a WritableFile the file is abandoned,
//     Sync is never retried.
//   - List revalidates; opening a name that was missing a moment ago may go on failing for 30 s. Never poll by open.
// Paths are plain strings, '/' separated; the interface resolves nothing and follows what the OS follows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ledger/base/coding.h"
#include "ledger/base/result.h"

namespace holdfast {

struct FileInfo {
  uint64_t size = 0;
  uint64_t mtime_ns = 0;  // the server's clock: to notice change, never to order events
  uint64_t inode = 0;
  uint64_t device = 0;
  uint32_t nlink = 1;
  bool is_directory = false;
};

struct SpaceInfo {
  uint64_t free_bytes = 0;  // available to this user
  uint64_t total_bytes = 0;
};

class WritableFile {  // closes (without Sync) when destroyed; not thread safe
 public:
  virtual ~WritableFile() = default;
  virtual Status Append(ByteSpan data) = 0;
  virtual Status Sync() = 0;   // fsync: everything appended so far is stable
  virtual Status Close() = 0;  // also reports late write errors
  virtual void DropCache() = 0;  // advises the kernel to forget the (synced) pages; best effort
};

class ReadableFile {  // immutable content; pread from any thread
 public:
  virtual ~ReadableFile() = default;
  virtual uint64_t size() const = 0;  // at open
  // Reads exactly out.size() bytes at `offset`. Short file: kCorrupt.
  virtual Status Read(uint64_t offset, std::span<uint8_t> out) const = 0;
  virtual void DropCache(uint64_t offset, uint64_t length) const = 0;  // best effort
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  virtual Result<std::unique_ptr<WritableFile>> Create(const std::string& path, uint32_t mode) = 0;  // O_CREAT|O_WRONLY|O_TRUNC
  virtual Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) = 0;                   // kNotFound
  // Whole file; kResourceExhausted when larger than `max_bytes`.
  Result<Bytes> ReadFile(const std::string& path, uint64_t max_bytes = 1ull << 30);

  virtual Status Link(const std::string& from, const std::string& to) = 0;             // kAlreadyExists if `to` exists
  virtual Status RenameExclusive(const std::string& from, const std::string& to) = 0;  // fails if `to` exists (an empty directory may be replaced)
  // rename(2) of a plain file over whatever has that name: the name is never free in between. Not a commit (it cannot lose),
  // only for putting a tombstone over a damaged slot.
  virtual Status Replace(const std::string& from, const std::string& to);
  virtual Status Unlink(const std::string& path) = 0;
  virtual Status RemoveTree(const std::string& path) = 0;
  virtual Status SyncDir(const std::string& path) = 0;
  virtual Status MakeDirs(const std::string& path) = 0;  // like mkdir -p; fine if it exists
  virtual Result<std::vector<std::string>> List(const std::string& path) = 0;  // names, sorted, without . and ..
  virtual Result<FileInfo> Stat(const std::string& path) = 0;                  // follows links; kNotFound
  virtual Result<SpaceInfo> Space(const std::string& path) = 0;
  // Existence test by Stat: true, false on kNotFound, else the error.
  Result<bool> Exists(const std::string& path);
};

class PosixFileSystem final : public FileSystem {
 public:
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
};

std::string JoinPath(const std::string& a, const std::string& b);
std::string DirName(const std::string& path);   // "" never: "." at least
std::string BaseName(const std::string& path);  // without trailing slashes

}  // namespace holdfast
