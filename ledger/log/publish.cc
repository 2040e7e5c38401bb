// SPDX-License-Identifier: Apache-2.0
#include "ledger/log/publish.h"

#include "ledger/base/fail_point.h"

namespace holdfast {
namespace {

// P1-P3. Whatever fails here, the file is abandoned: a later fsync may well return 0 over lost bytes.
Status Stage(FileSystem& fs, const std::string& tmp, const std::vector<ByteSpan>& parts, const PublishOptions& options) {
  HOLDFAST_TRY(FailPoint("publish.P1", options.subject));
  HOLDFAST_ASSIGN(const std::unique_ptr<WritableFile> file, fs.Create(tmp, 0444));
  HOLDFAST_TRY(FailPoint("publish.P2", options.subject));
  for (const ByteSpan part : parts) HOLDFAST_TRY(file->Append(part));
  HOLDFAST_TRY(FailPoint("publish.P3", options.subject));
  if (!options.skip_sync_for_test) HOLDFAST_TRY(file->Sync());
  if (options.cache == PublishOptions::Cache::kDrop) file->DropCache();
  return file->Close();
}

// P4, P5.
Status Commit(FileSystem& fs, const std::string& tmp, const std::string& path, const PublishOptions& options) {
  HOLDFAST_TRY(FailPoint("publish.P4", options.subject));
  HOLDFAST_TRY(options.replace ? fs.Replace(tmp, path) : fs.Link(tmp, path));
  HOLDFAST_TRY(FailPoint("publish.P5", options.subject));
  return fs.SyncDir(DirName(path));
}

}  // namespace

Status Publish(FileSystem& fs, const std::string& path, const std::vector<ByteSpan>& parts, const PublishOptions& options) {
  HOLDFAST_TRY(FailPoint("publish.P0", options.subject));
  const std::string tmp = JoinPath(options.tmp_dir, Nonce::Random().Hex());
  Status result = Stage(fs, tmp, parts, options);
  if (result.ok()) {
    if (options.reached_link != nullptr) *options.reached_link = true;
    result = Commit(fs, tmp, path, options);
    if (result.ok()) HOLDFAST_TRY(FailPoint("publish.P6", options.subject));
  }
  if (!(result.ok() && options.replace)) (void)fs.Unlink(tmp);  // a leftover is harmless; fsck reports it
  if (result.ok()) HOLDFAST_TRY(FailPoint("publish.P7", options.subject));
  if (!result.ok()) return Annotate(result.error(), "publishing " + path);
  return OkStatus();
}

}  // namespace holdfast
