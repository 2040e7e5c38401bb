// SPDX-License-Identifier: Apache-2.0
//
// A root as a command of jobctl has it open: where it is, who we are, its queue and its nodes. Reading changes nothing on disk; only Say
// (and making a root) writes.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "ledger/base/clock.h"
#include "ledger/cluster/queue.h"
#include "ledger/cluster/root.h"

namespace holdfast {

// kWrite: a root is made where there is none yet, and that it can be written is tried now.
enum class RootUse : uint8_t { kRead, kWrite };

class RootSession {
 public:
  ~RootSession();                          // removes our directory in ROOT/tmp
  // Errors (all refusals, naming the directory): no root was said, none is there, it cannot be read or written, something else lies there.
  static Result<std::unique_ptr<RootSession>> Open(const std::string& root, RootUse use, Clock& clock);
  // Reads what is new in the queue and about the nodes. A node whose stream cannot be read hides nobody else: see warning().
  Status Refresh();
  const std::string& warning() const { return warning_; }
  // Appends to the queue; `by` is filled in. `check` as in Queue::Append. Said again where the storage gave no clear answer.
  Status Say(QueueRecord record, const std::function<Status(const Queue&)>& check);

  FileSystem& fs() { return *fs_; }
  Clock& clock() { return clock_; }
  const RootLayout& layout() const { return layout_; }
  const RootInfo& info() const { return info_; }
  const Incarnation& self() const { return self_; }
  const Queue& queue() const { return *queue_; }
  const Roster& roster() const { return *roster_; }

 private:
  RootSession(const std::string& root, Clock& clock);
  PosixFileSystem posix_;
  std::unique_ptr<FileSystem> fs_;         // as ROOT says
  Clock& clock_;
  RootLayout layout_;
  RootInfo info_;
  Incarnation self_;
  std::unique_ptr<Queue> queue_;
  std::unique_ptr<Roster> roster_;
  std::string warning_;
};

// "jobctl --root DIR", for the next command of a message.
std::string AtRoot(const std::string& root);
std::string KnownNodesText(const Roster& roster);   // "n1, n2" or "none"

}  // namespace holdfast
