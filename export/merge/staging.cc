// SPDX-License-Identifier: Apache-2.0
#include "export/merge/staging.h"

#include <algorithm>
#include <charconv>

#include "export/merge/merge.h"
#include "ledger/base/hash_file.h"

namespace holdfast {
namespace {

constexpr uint32_t kFileMode = 0644;

}  // namespace

Result<std::string> StagingPrefix(FileSystem& fs, const RunLayout& run, const JobSpec& job) {
  HOLDFAST_ASSIGN(const FileInfo format, fs.Stat(run.FormatFile()));
  std::string prefix = ".";
  return prefix.append(BaseName(job.out)).append(".holdfast-").append(job.uuid.Hex()).append("-")
      .append(std::to_string(format.inode)).append("-");
}

Staging::Staging(FileSystem& fs, const JobSpec& job, const std::string& prefix, uint64_t epoch)
    : fs_(fs),
      parent_(DirName(job.out)),
      prefix_(prefix),
      path_(JoinPath(parent_, prefix + std::to_string(epoch))),
      epoch_(epoch) {}

Status Staging::Create() {
  HOLDFAST_TRY(fs_.MakeDirs(path_));
  return fs_.SyncDir(parent_);
}

Result<std::vector<std::string>> Staging::Older() const {
  HOLDFAST_ASSIGN(const std::vector<std::string> names, fs_.List(parent_));
  std::vector<std::string> paths;
  for (const std::string& name : names) {
    if (!name.starts_with(prefix_)) continue;
    uint64_t epoch = 0;
    const char* const end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + prefix_.size(), end, epoch);
    if (parsed.ec == std::errc() && parsed.ptr == end && epoch < epoch_)
      paths.push_back(JoinPath(parent_, name));
  }
  return paths;
}

Result<bool> Staging::Adopt(const MergeRecord& written) const {
  HOLDFAST_ASSIGN(std::vector<std::string> places, Older());
  places.insert(places.begin(), path_);
  for (const std::string& place : places) {
    const std::string from = JoinPath(place, written.name), to = PathOf(written.name);
    const auto info = fs_.Stat(from);
    if (!info.ok() || info->size != written.size) continue;
    const auto digest = HashFile(fs_, from, PageCache::kDrop);
    if (!digest.ok() || *digest != written.sha256) continue;
    if (place == path_) return true;
    (void)fs_.Unlink(to).ok();  // a torn file of our own: Link wants the name free
    if (fs_.Link(from, to).ok()) return true;
    const auto linked = fs_.Stat(to);  // an error, although the link was made: a lost reply
    if (linked.ok() && linked->inode == info->inode && linked->device == info->device) return true;
  }
  return false;
}

void Staging::DropUnfinished(const std::string& name, const MergeRecord* written) const {
  const auto places = Older();
  if (!places.ok()) return;
  for (const std::string& place : *places) {
    const std::string path = JoinPath(place, name);
    const auto info = fs_.Stat(path);
    const bool finished = written != nullptr && info.ok() && info->size == written->size;
    if (info.ok() && !finished) (void)fs_.Unlink(path).ok();  // best effort: only space is at stake
  }
}

Result<std::unique_ptr<WritableFile>> Staging::NewFile(const std::string& name) const {
  const Status gone = fs_.Unlink(PathOf(name));
  if (!gone.ok() && gone.code() != ErrorCode::kNotFound) return gone.error();
  return fs_.Create(PathOf(name), kFileMode);
}

Status Staging::WriteSmall(const std::string& name, ByteSpan bytes) const {
  const std::string dir = DirName(PathOf(name));
  if (dir != path_) HOLDFAST_TRY(fs_.MakeDirs(dir));
  HOLDFAST_ASSIGN(const auto file, NewFile(name));
  HOLDFAST_TRY(file->Append(bytes));
  HOLDFAST_TRY(file->Sync());
  HOLDFAST_TRY(file->Close());
  return dir == path_ ? OkStatus() : fs_.SyncDir(dir);
}

Status Staging::RemoveAll() const {
  HOLDFAST_ASSIGN(std::vector<std::string> paths, Older());
  paths.push_back(path_);
  for (const std::string& p : paths) {
    HOLDFAST_ASSIGN(const bool there, fs_.Exists(p));
    if (there) HOLDFAST_TRY(fs_.RemoveTree(p));
  }
  return OkStatus();
}

}  // namespace holdfast
