// SPDX-License-Identifier: Apache-2.0
//
// A file system that passes everything on: what decorators begin with, and override where they differ.
#pragma once

#include "ledger/base/file_system.h"

namespace holdfast {

class ForwardingFileSystem : public FileSystem {
 public:
  explicit ForwardingFileSystem(FileSystem& fs) : fs_(fs) {}
  Result<std::unique_ptr<WritableFile>> Create(const std::string& path, uint32_t mode) override { return fs_.Create(path, mode); }
  Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override { return fs_.Open(path); }
  Status Link(const std::string& from, const std::string& to) override { return fs_.Link(from, to); }
  Status RenameExclusive(const std::string& from, const std::string& to) override { return fs_.RenameExclusive(from, to); }
  Status Replace(const std::string& from, const std::string& to) override { return fs_.Replace(from, to); }
  Status Unlink(const std::string& path) override { return fs_.Unlink(path); }
  Status RemoveTree(const std::string& path) override { return fs_.RemoveTree(path); }
  Status SyncDir(const std::string& path) override { return fs_.SyncDir(path); }
  Status MakeDirs(const std::string& path) override { return fs_.MakeDirs(path); }
  Result<std::vector<std::string>> List(const std::string& path) override { return fs_.List(path); }
  Result<FileInfo> Stat(const std::string& path) override { return fs_.Stat(path); }
  Result<SpaceInfo> Space(const std::string& path) override { return fs_.Space(path); }

 protected:
  FileSystem& fs_;
};

}  // namespace holdfast
