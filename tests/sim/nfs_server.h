// SPDX-License-Identifier: Apache-2.0
//
// The file server that all simulated nodes share, as ledger.md measured one:
//   sync export   a name is on the disk when the reply is sent; file data only after COMMIT, or after a while of its own accord
//   async export  everything is only in memory until the server finds the time; COMMIT says yes and means nothing
// Crash() forgets what was in memory. LINK, RENAME and the rest are atomic; what clients make of that is nfs_client.h.
// Locked, because production code reads from helper threads, too.
#pragma once

#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "tests/sim/faults.h"
#include "tests/sim/random.h"

namespace holdfast::sim {

struct Inode;
using InodePtr = std::shared_ptr<Inode>;

struct Inode {
  uint64_t id = 0, mtime = 1;
  bool directory = false;
  uint32_t nlink = 0;
  Bytes data, disk;                                // as read now; as on disk
  std::map<std::string, InodePtr> names, on_disk;  // of a directory, likewise
  std::vector<std::string> listed;                 // names, while `listing_holds`: directories of slots are long and only grow
  bool listing_holds = false;
};

class NfsServer {
 public:
  enum class Export : uint8_t { kSync, kAsync };
  NfsServer(Export kind, uint64_t seed);

  // ---- RPCs ----
  Result<InodePtr> Lookup(const std::string& path) const;
  Result<InodePtr> Create(const std::string& path);                       // truncates
  Status Write(const InodePtr& file, ByteSpan whole);                     // UNSTABLE
  void Commit(const InodePtr& file);
  uint64_t boots() const { return boots_; }                               // the verifier of WRITE and COMMIT: another one, and UNSTABLE data may be lost
  Status Link(const InodePtr& file, const std::string& to);               // by handle: works as long as the file has a name
  enum class IfTaken : uint8_t { kFail, kReplace };
  Status Rename(const std::string& from, const std::string& to, IfTaken taken);
  Status Unlink(const std::string& path);
  Status RemoveTree(const std::string& path);
  Status MakeDir(const std::string& path);                                // one level; fine if it exists
  Result<std::vector<std::string>> List(const std::string& path) const;
  static FileInfo Describe(const Inode& inode);

  // ---- what happens to it ----
  void Crash();                   // clients that live send again what was not committed
  void WriteBack();               // everything in memory goes to disk
  bool up = true, full = false, read_only = false;
  Export kind() const { return kind_; }

  // Tells of every change of a name: ("link", "/run/log/job/00000000.seg").
  std::function<void(const std::string& op, const std::string& path)> on_name;
  std::function<void()> on_wish_to_crash;                                 // a client asks for it now
  uint64_t names_made() const { return names_made_; }
  FaultCounts* faults = nullptr;                                          // to count in

 private:
  struct Place {
    InodePtr dir;
    std::string name;
  };
  InodePtr Find(const std::string& path) const;
  Result<Place> ParentOf(const std::string& path) const;
  Status MayWrite(const std::string& path) const;
  void Changed(const char* op, const std::string& path, const InodePtr& dir);
  void Count(Fault fault) const {
    if (faults != nullptr) faults->Add(fault);
  }
  int NoSpace() { return random_.Chance(200) ? EDQUOT : ENOSPC; }
  void Settle(const InodePtr& dir, std::set<uint64_t>* seen);
  void Flush(const InodePtr& dir, std::set<uint64_t>* seen);

  mutable std::recursive_mutex mutex_;
  Export kind_;
  Random random_;
  InodePtr root_;
  uint64_t next_id_ = 1, clock_ = 1, names_made_ = 0, boots_ = 0;
};

}  // namespace holdfast::sim
