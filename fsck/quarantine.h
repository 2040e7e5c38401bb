// SPDX-License-Identifier: Apache-2.0
//
// quarantine/<id>/ of a run directory or root: what one repair moved away or replaced, and the manifest that says how to put it back.
//   manifest.json   complete and stable before anything is changed; never changes
//   UNDONE          published when an undo has reached its end
//   log/<stream>/%08x.seg   copies of slots that a tombstone was put over
//   files/<n>-<name>        what was moved away; of things outside the directory only when they lie on the same file system
//   undone/log/...          slots that the repair had appended, once it was undone
#pragma once

#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/format/layout.h"
#include "ledger/records/records.h"

namespace holdfast::fsck {

struct QuarantineManifest {
  struct Stream {
    std::string stream;
    uint32_t next_seq = 0;        // its length before the repair
  };
  struct Burial {
    std::string stream;
    uint32_t seq = 0;
    bool missing = false;         // there was no file; else its size and digest
    uint64_t size = 0;
    Digest sha256;
    std::string code, reason;
  };
  struct Move {
    std::string from, to;         // relative to the directory, or absolute
    uint64_t size = 0;            // of a plain file
    Digest sha256;                // of a plain file; zero for a directory
    std::string code, reason;
  };
  std::string id;
  Nonce incarnation;              // of the process that repaired: what it appended carries it
  Nonce job;
  uint64_t wall_ns = 0;           // for people
  std::string by;                 // "process 17 on host", for people
  std::vector<Stream> streams;    // that the repair may append to
  std::vector<Burial> burials;
  std::vector<Move> moves;
  std::vector<std::string> voids, salvaged; // for people; `salvaged` is left out where nothing was

  Json ToJson() const;
  static Result<QuarantineManifest> FromJson(const Json& j);
};

class Quarantine {
 public:
  Quarantine(const RunLayout& layout, std::string id) : dir_(JoinPath(layout.QuarantineDir(), id)), root_(layout.root()) {}
  const std::string& dir() const { return dir_; }
  std::string ManifestFile() const { return dir_ + "/manifest.json"; }
  std::string UndoneFile() const { return dir_ + "/UNDONE"; }
  std::string SlotCopy(const std::string& stream, uint32_t seq) const { return RunLayout(dir_).Slot(stream, seq); }
  std::string UndoneSlot(const std::string& stream, uint32_t seq) const { return RunLayout(dir_ + "/undone").Slot(stream, seq); }
  // Paths of the manifest, as the file system has them.
  std::string Absolute(const std::string& path) const { return path.starts_with("/") ? path : JoinPath(root_, path); }
  std::string Relative(const std::string& path) const;

 private:
  std::string dir_, root_;
};

// kNotFound names the ids that there are.
Result<QuarantineManifest> ReadManifest(FileSystem& fs, const RunLayout& layout, const std::string& id);
// Ids with a manifest, ascending (they begin with the date).
std::vector<std::string> QuarantineIds(FileSystem& fs, const RunLayout& layout);

// A stable copy (fsynced, its name too) under a name that may exist already from an earlier try.
Status CopyFile(FileSystem& fs, const std::string& from, const std::string& to, Digest* sha256, uint64_t* size);
// rename(2) of whatever lies at `from`; the directory of `to` is made. What lies at `to` is never replaced: kAlreadyExists.
Status MoveTo(FileSystem& fs, const std::string& from, const std::string& to);

}  // namespace holdfast::fsck
