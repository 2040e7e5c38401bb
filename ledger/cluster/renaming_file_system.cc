// SPDX-License-Identifier: Apache-2.0
//
// Commits without hard links (ledger.md 1.4): rename(2) of a directory onto a name is exclusive, because a directory that holds a file
// cannot be replaced. The file is complete and stable in its private directory before the rename, as it is before link(2).
#include "ledger/base/forwarding_file_system.h"
#include "ledger/cluster/root.h"

namespace holdfast {
namespace {

bool IsCommitName(const std::string& path) {
  const std::string name = BaseName(path);
  return name.ends_with(".seg") || name.ends_with(".pack") || name == "FORMAT" || name == "ROOT";
}

std::string DataOf(const std::string& path) { return JoinPath(path, "data"); }

class RenamingFileSystem final : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;

  Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
    if (!IsCommitName(path)) return fs_.Open(path);
    auto inside = fs_.Open(DataOf(path));
    if (inside.ok() || inside.code() == ErrorCode::kTransient) return inside;
    auto plain = fs_.Open(path);  // committed by link(2), or not there
    if (plain.ok() || plain.code() != ErrorCode::kInvalidArgument) return plain;
    return NotFound("opening " + path + ": a directory without data in it");
  }

  Result<FileInfo> Stat(const std::string& path) override {
    if (!IsCommitName(path)) return fs_.Stat(path);
    const auto inside = fs_.Stat(DataOf(path));
    if (inside.ok() || inside.code() == ErrorCode::kTransient) return inside;
    const auto plain = fs_.Stat(path);
    if (plain.ok() && plain->is_directory) return NotFound("stat of " + path + ": a directory without data in it");
    return plain;
  }

  Status Link(const std::string& from, const std::string& to) override {
    if (!IsCommitName(to)) return fs_.Link(from, to);
    HOLDFAST_ASSIGN(const FileInfo mine, fs_.Stat(from));
    const std::string box = from + ".box";
    HOLDFAST_TRY(fs_.MakeDirs(box));
    HOLDFAST_TRY(fs_.Replace(from, DataOf(box)));
    HOLDFAST_TRY(fs_.SyncDir(box));
    const Status renamed = fs_.RenameExclusive(box, to);
    if (renamed.ok()) return renamed;
    const auto there = Stat(to);
    if (there.code() == ErrorCode::kNotFound) return renamed;  // no clear answer: the box stays, the rename may still arrive
    if (!there.ok()) return there.error();
    if (there->inode == mine.inode && there->device == mine.device) return OkStatus();  // ours: only the reply was lost
    (void)fs_.RemoveTree(box);
    return MakeError(ErrorCode::kAlreadyExists, "linking " + to + ": the name is taken");
  }

  Status Replace(const std::string& from, const std::string& to) override {
    if (!IsCommitName(to)) return fs_.Replace(from, to);
    const auto there = fs_.Stat(to);
    if (!there.ok() || !there->is_directory) return fs_.Replace(from, to);
    HOLDFAST_TRY(fs_.Replace(from, DataOf(to)));
    return fs_.SyncDir(to);  // the caller knows of the directory above only
  }

  Status Unlink(const std::string& path) override {
    if (!IsCommitName(path)) return fs_.Unlink(path);
    const auto there = fs_.Stat(path);
    if (!there.ok() || !there->is_directory) return fs_.Unlink(path);
    HOLDFAST_TRY(fs_.Unlink(DataOf(path)));
    return fs_.RemoveTree(path);
  }
};

}  // namespace

std::unique_ptr<FileSystem> MakeRenamingFileSystem(FileSystem& fs) { return std::make_unique<RenamingFileSystem>(fs); }

std::unique_ptr<FileSystem> OpenFileSystemFor(FileSystem& fs, const RootInfo& info) {
  if (info.commit == RootInfo::Commit::kRename) return MakeRenamingFileSystem(fs);
  return std::make_unique<ForwardingFileSystem>(fs);
}

}  // namespace holdfast
