// SPDX-License-Identifier: Apache-2.0
//
// The hidden directory in which one claim writes an output, and what dead claims of the same job left in theirs.
#pragma once

#include <string>
#include <vector>

#include "ledger/base/checksum.h"
#include "ledger/base/file_system.h"
#include "ledger/records/records.h"

namespace holdfast {

class Staging {
 public:
  // `prefix`: StagingPrefix.
  Staging(FileSystem& fs, const JobSpec& job, const std::string& prefix, uint64_t epoch);
  const std::string& path() const { return path_; }
  std::string PathOf(const std::string& name) const { return JoinPath(path_, name); }

  Status Create();
  // Puts the file that `written` describes into this staging, if this or an older one holds it with the same size and SHA-256.
  // Older ones are hard-linked, never moved: their owner may be alive without knowing that it lost.
  Result<bool> Adopt(const MergeRecord& written) const;
  // Gives back the space of what older claims left unfinished under this name: files that no M(written) vouches for (`written`: the
  // latest, or null). Their owners, if alive, would have to commit M(written) before they could publish, and are fenced.
  void DropUnfinished(const std::string& name, const MergeRecord* written) const;
  // A new file in this staging; whatever had the name is unlinked first, because it may share its bytes with an older staging.
  Result<std::unique_ptr<WritableFile>> NewFile(const std::string& name) const;
  // Writes, syncs and closes a small file; makes directories on the way.
  Status WriteSmall(const std::string& name, ByteSpan bytes) const;
  // Removes the staging directories of this job up to and including this epoch's (if it was not renamed away).
  Status RemoveAll() const;

 private:
  Result<std::vector<std::string>> Older()
      const;  // paths of stagings of this job with a lower epoch
  FileSystem& fs_;
  std::string parent_, prefix_, path_;
  uint64_t epoch_;
};

}  // namespace holdfast
