// SPDX-License-Identifier: Apache-2.0
//
// A node's view of the file server, and the FileSystem that production code is handed.
//   NfsClient   what the kernel of one node keeps: negative dentries (30 s), attributes, listings, data that was written and not committed
//   NfsFs       one process on that node. Every call takes time, so that anything may happen before it reaches the server or before its reply
//               is heard: death, a pause, a takeover by somebody else. A LINK may be lost on its way back, or arrive late, even after the
//               death of its sender. Errors come up where Linux brings them up: at write, at fsync or at close, once.
//   Without a client: the server itself, at once, for checkers and for setting up.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "tests/sim/nfs_server.h"
#include "tests/sim/world.h"

namespace holdfast::sim {

// How often things go wrong, per mille of calls, while faults are on.
struct NfsTroubles {
  uint32_t eio = 0, estale = 0, lost_link = 0, late_link = 0, stale_list = 0, torn_list = 0;
  uint32_t negative_dentries = 0;     // of failed lookups that are remembered
  uint32_t stale_attributes = 0;
  uint32_t die_at_call = 0;           // per 100,000: the process dies exactly here
  uint32_t pause_at_call = 0;         // per 100,000
  uint32_t crash_at_fsync = 0;        // per 100,000: the server does, between WRITE and COMMIT
};

class NfsClient {
 public:
  NfsClient(World& world, NfsServer& server, uint64_t seed) : world(world), server(server), random(seed) {}

  void PowerOff();                    // everything it kept is gone
  void Replay();                      // the server was restarted: what it had not committed is sent again

  World& world;
  NfsServer& server;
  Random random;
  NfsTroubles troubles;
  bool cut_off = false;               // from the server; calls wait (hard mount)
  uint64_t generation = 0;            // power cycles
  std::atomic<uint64_t> rpcs{0};
  uint64_t rpc_ns_min = 200'000, rpc_ns_max = 3 * kMs;

 private:
  friend class NfsFs;
  struct Cached {
    uint64_t until = 0;
    Result<FileInfo> info = Error{};
  };
  struct Listing {
    uint64_t until = 0;
    std::vector<std::string> names;
  };
  std::map<std::string, uint64_t> negative_;
  std::map<std::string, Cached> attributes_;
  std::map<std::string, Listing> listings_;
  std::vector<std::pair<InodePtr, Bytes>> uncommitted_;
};

class NfsFs final : public FileSystem {
 public:
  explicit NfsFs(NfsServer& server) : server_(server) {}
  NfsFs(NfsClient& client, Process& process) : server_(client.server), client_(&client), process_(&process) {}

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
  class Writer;
  class Reader;
  bool live() const { return client_ != nullptr && Fiber::Current() != nullptr; }   // not the server itself, not a helper thread
  bool dead() const { return process_ != nullptr && process_->dead(); }
  Status Enter(const char* op, const std::string& path);
  Status Leave();
  Status Trouble(const char* op, const std::string& path);
  bool Chance(uint32_t per_mille) { return live() && client_->random.Chance(per_mille); }
  void Count(Fault fault) { client_->world.faults.Add(fault); }   // live() only
  bool Hidden(const std::string& path);
  void Remember(const std::string& path);
  void CountStale(const std::string& path, const std::vector<std::string>& names);
  void Say(const char* op, const std::string& path, const Status& status);
  void Forget(const std::string& path);
  enum class Sender : uint8_t { kWaits, kDead };
  void LinkLater(const InodePtr& file, const std::string& to, Sender sender);
  Status Finish(const char* op, const std::string& path, Status status);

  NfsServer& server_;
  NfsClient* client_ = nullptr;
  Process* process_ = nullptr;
};

}  // namespace holdfast::sim
