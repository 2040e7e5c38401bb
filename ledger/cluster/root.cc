// SPDX-License-Identifier: Apache-2.0
#include "ledger/cluster/root.h"

#include <algorithm>

#include "ledger/base/fail_point.h"
#include "ledger/format/sealed_text.h"
#include "ledger/log/publish.h"
#include "ledger/records/records.h"

namespace holdfast {
namespace {

constexpr const char* kFirstLine = "holdfast root directory";
constexpr uint32_t kRootFormat = 1;
constexpr uint32_t kKnownIncompat = 0, kKnownRoCompat = 0;  // feature bits; none is in use yet
constexpr const char* kLink = "link";
constexpr const char* kRename = "rename";

Result<RootInfo> Judge(const SealedText& text, const std::string& path) {
  const auto value = [&](const char* key) {
    const auto it = text.more.find(key);
    return it == text.more.end() ? std::string() : it->second;
  };
  const std::string commit = value("commit");
  if (text.number > kRootFormat || (text.incompat & ~kKnownIncompat) != 0 || (text.ro_compat & ~kKnownRoCompat) != 0 || (commit != kLink && commit != kRename)) {
    return Unsupported(path + ": format " + std::to_string(text.number) + " or features of a newer holdfast; use the version that made it");
  }
  RootInfo info;
  if (!Nonce::FromHex(value("uuid"), &info.uuid)) return Corrupt(path + ": holds no uuid; restore the file from a backup (it never changes after the first start)");
  info.commit = commit == kLink ? RootInfo::Commit::kLink : RootInfo::Commit::kRename;
  return info;
}

// A new root begins in a directory that is empty, or that a start which was cut short left behind. Hidden files are the server's.
Status CheckFree(FileSystem& fs, const std::string& root) {
  const auto names = fs.List(root);
  if (names.code() == ErrorCode::kNotFound) return OkStatus();
  if (!names.ok()) return names.error();
  if (std::binary_search(names->begin(), names->end(), "FORMAT")) {
    return InvalidArgument(root + ": is the run directory of one job, not a root; give an empty directory with --root");
  }
  for (const std::string& name : *names) {
    const bool ours = name == "log" || name == "jobs" || name == "beats" || name == "keys" || name == "tmp" || name == "ROOT";
    if (ours || name[0] == '.' || name == "lost+found") continue;
    return InvalidArgument(root + ": holds \"" + name + "\", which belongs to no root; give an empty directory with --root");
  }
  return OkStatus();
}

Error NotWritable(const std::string& root, const Error& why) {
  if (why.code == ErrorCode::kTransient || why.code == ErrorCode::kResourceExhausted) return why;
  return InvalidArgument(root + ": cannot be written by this user on this node (" + why.message + "); mount it read-write here, or give another --root");
}

Status MakeDirectories(FileSystem& fs, const RootLayout& layout, const Nonce& incarnation) {
  for (const std::string& dir : {layout.streams().LogDir(), layout.JobsDir(), layout.BeatsDir(), layout.streams().TmpDir(incarnation)}) {
    HOLDFAST_TRY(fs.MakeDirs(dir));
  }
  HOLDFAST_TRY(fs.SyncDir(layout.root()));
  return fs.SyncDir(DirName(layout.root()));
}

Status WriteTrial(FileSystem& fs, const std::string& path) {
  HOLDFAST_ASSIGN(const auto file, fs.Create(path, 0444));
  HOLDFAST_TRY(file->Append(AsBytes("holdfast\n")));
  HOLDFAST_TRY(file->Sync());
  return file->Close();
}

// Whether a second name can be given to a file. An error only where the storage gave no answer.
Result<bool> TryLink(FileSystem& fs, const std::string& dir) {
  const std::string from = JoinPath(dir, Nonce::Random().Hex()), to = from + ".linked";
  HOLDFAST_TRY(WriteTrial(fs, from));
  Status linked = FailPoint("root.link_probe", dir);
  if (linked.ok()) linked = fs.Link(from, to);
  const auto there = fs.Stat(to);
  (void)fs.Unlink(to);
  (void)fs.Unlink(from);
  if (linked.ok() || there.ok()) return true;
  if (linked.code() == ErrorCode::kTransient || linked.code() == ErrorCode::kResourceExhausted) return linked.error();
  return false;
}

// The fallback must hold what it promises before anything rests on it: the second of two commits loses.
Status TryRename(FileSystem& fs, const std::string& dir) {
  const auto renaming = MakeRenamingFileSystem(fs);
  const std::string first = JoinPath(dir, Nonce::Random().Hex()), second = JoinPath(dir, Nonce::Random().Hex()), to = first + ".seg";
  HOLDFAST_TRY(WriteTrial(fs, first));
  HOLDFAST_TRY(WriteTrial(fs, second));
  const Status won = renaming->Link(first, to), lost = renaming->Link(second, to);
  for (const std::string& path : {to, first, second}) (void)renaming->Unlink(path);
  if (won.ok() && lost.code() == ErrorCode::kAlreadyExists) return OkStatus();
  return Unsupported(dir + ": this file server has neither hard links nor exclusive renames of directories (" +
                     (won.ok() ? "the second of two renames to one name did not fail" : won.error().message) + "); put the root on another one");
}

Status PublishRoot(FileSystem& fs, const RootLayout& layout, const Nonce& incarnation, RootInfo::Commit commit) {
  SealedText text;
  text.number = kRootFormat;
  text.more = {{"commit", commit == RootInfo::Commit::kLink ? kLink : kRename}, {"uuid", Nonce::Random().Hex()}};
  const std::string rendered = RenderSealedText(kFirstLine, text);
  RootInfo info;
  info.commit = commit;
  const auto through = OpenFileSystemFor(fs, info);
  PublishOptions options;
  options.tmp_dir = layout.streams().TmpDir(incarnation);
  options.subject = "ROOT";
  return Publish(*through, layout.RootFile(), {AsBytes(rendered)}, options);
}

}  // namespace

Status CheckName(const std::string& what, const std::string& name) {
  if (IsPlainName(name)) return OkStatus();
  return InvalidArgument(what + " \"" + name + "\": must be 1 to 64 of A-Z a-z 0-9 _ . - and begin with a letter or digit");
}

std::string JobIdOf(const Nonce& uuid) { return uuid.Hex().substr(0, 12); }

Result<RootInfo> ReadRoot(FileSystem& fs, const RootLayout& layout) {
  const auto through = MakeRenamingFileSystem(fs);  // finds the file whichever way it was committed
  const auto text = ReadSealedText(*through, layout.RootFile(), kFirstLine);
  if (text.code() == ErrorCode::kNotFound) {
    return NotFound(layout.root() + ": no ROOT file, so no root (or nothing was started in it yet); `holdfastd --root " + layout.root() + "` or `jobctl --root " +
                    layout.root() + " submit` makes one");
  }
  if (!text.ok()) return text.error();
  return Judge(*text, layout.RootFile());
}

Result<RootInfo> EnsureRoot(FileSystem& fs, const RootLayout& layout, const Nonce& incarnation) {
  const std::string tmp = layout.streams().TmpDir(incarnation);
  if (const auto info = fs.Stat(layout.root()); info.ok() && !info->is_directory) {
    return InvalidArgument(layout.root() + ": is not a directory; give the directory that the nodes share with --root");
  }
  auto there = ReadRoot(fs, layout);
  if (!there.ok() && there.code() != ErrorCode::kNotFound) return there;
  if (!there.ok()) HOLDFAST_TRY(CheckFree(fs, layout.root()));
  if (const Status made = MakeDirectories(fs, layout, incarnation); !made.ok()) return NotWritable(layout.root(), made.error());
  const std::string trial = JoinPath(tmp, Nonce::Random().Hex());
  const Status written = WriteTrial(fs, trial);
  (void)fs.Unlink(trial);
  if (!written.ok()) return NotWritable(layout.root(), written.error());
  if (there.ok() && there->commit == RootInfo::Commit::kRename) return there;
  HOLDFAST_ASSIGN(const bool links, TryLink(fs, tmp));
  if (there.ok() && links) return there;
  if (there.ok()) {
    return Unsupported(layout.root() + ": hard links do not work from this node, but they did where the root was made; mount the same export with the same options on every node");
  }
  if (!links) HOLDFAST_TRY(TryRename(fs, tmp));
  const Status published = PublishRoot(fs, layout, incarnation, links ? RootInfo::Commit::kLink : RootInfo::Commit::kRename);
  auto now = ReadRoot(fs, layout);  // ours, or that of another starter who was first
  return now.code() == ErrorCode::kNotFound && !published.ok() ? Result<RootInfo>(published.error()) : now;
}

}  // namespace holdfast
