// SPDX-License-Identifier: Apache-2.0
//
// The queue of a root: folded from its "queue" stream. Nobody owns the stream for long: every command claims it, and its record
// travels in the claim's slot, so that one link(2) decides between two of the same name.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "ledger/cluster/root.h"
#include "ledger/log/stream.h"

namespace holdfast {

struct QueuedJob {
  enum class State : uint8_t { kQueued, kDone, kFailed, kCancelled, kRefused };   // queued: waiting or running, its own ledger tells
  QueueRecord submit;
  State state = State::kQueued;
  std::string detail;                // of the end, the refusal
  uint32_t order = 0;                // slot of the submission
  uint32_t retries = 0;
  uint64_t submitted_wall_ns = 0, ended_wall_ns = 0;   // for people
  Nonce told_by;                     // incarnation that brought it into its state
};

class Queue {
 public:
  Queue(FileSystem& fs, RootLayout layout, Nonce root_uuid);
  Status Refresh();                                   // reads what is new
  const std::vector<QueuedJob>& jobs() const { return jobs_; }   // in order of submission
  // By id, by a prefix of at least 4 digits that fits one job only, or by name. kNotFound, kInvalidArgument (ambiguous), each listing what there is.
  Result<const QueuedJob*> Find(const std::string& id_or_name) const;
  const std::set<std::string>& drained() const { return drained_; }
  // Jobs that may be worked on, in the order of the night: queued, everything in `after` done; by priority, then by submission.
  // A job whose predecessor failed, was refused or cancelled is held back (see Held).
  std::vector<const QueuedJob*> Runnable() const;
  // Why a queued job is not in Runnable: "waits for NAME", "NAME failed: resume or cancel it"; "" if it is.
  std::string Held(const QueuedJob& job) const;
  uint32_t next_seq() const;                          // changes when something was said

  // Says something. `check` sees the queue as of the very slot that is tried (again after each lost race, and also if the queue is
  // empty); its error is the outcome. What would change nothing is refused before that: kNotFound (no such job), kInvalidArgument (the
  // name is taken, a job that is done cannot be cancelled, ...). What holds already is not said again: if this very incarnation said it (or submitted this id),
  // the answer is OK without asking `check`, so that after kTransient (no clear answer from the storage) the same record is simply appended
  // once more; if somebody else did, `check` decides what that means.
  // OK: durable, and this queue has seen it.
  Status Append(const Clock& clock, const Incarnation& self, const QueueRecord& record, const std::function<Status(const Queue&)>& check);

 private:
  enum class Effect : uint8_t { kChange, kSaidBefore };
  Result<Effect> Judge(QueueRecord* record) const;    // may it be said? Fills in ids for the names in `after`
  Result<Effect> JudgeSubmit(QueueRecord* record) const;
  Result<Effect> JudgeEnd(const QueueRecord& record, const QueuedJob& job) const;
  Status Apply(const Record& record, const Slot& slot);
  void Change(const QueueRecord& record, uint64_t wall_ns, const Slot& slot);
  bool Said(const Nonce& incarnation, const QueueRecord& record) const;   // was it this incarnation that said what holds?
  const QueuedJob* ById(const std::string& id) const;
  FileSystem& fs_;
  RootLayout layout_;
  Nonce uuid_;
  std::unique_ptr<StreamReader> reader_;
  std::vector<QueuedJob> jobs_;
  std::set<std::string> drained_;
};

// Every node name that was ever seen in a root: the last claim of its stream and the incarnation that made it.
struct KnownNode {
  std::string name;
  Incarnation incarnation;
  bool released = false;             // it said goodbye
  uint32_t lives = 0;                // claims of its stream
  uint64_t claimed_wall_ns = 0;      // of the last one, for people
  std::string reason;                // of the release: "drain", ...
};
class Roster {
 public:
  Roster(FileSystem& fs, RootLayout layout, Nonce root_uuid);
  // Lists log/, reads what is new. One unreadable stream does not hide the others: all are tried, the first error is returned.
  Status Refresh();
  const std::map<std::string, KnownNode>& nodes() const { return nodes_; }
  StreamReader* ReaderOf(const std::string& node);    // for the claim of one's own stream; made on first use. A writer opened
                                                      // through it (`on_record` null) keeps this roster current

 private:
  Status Apply(const std::string& node, const Record& record);
  FileSystem& fs_;
  RootLayout layout_;
  Nonce uuid_;
  std::map<std::string, std::unique_ptr<StreamReader>> readers_;   // by node name
  std::map<std::string, KnownNode> nodes_;
};

}  // namespace holdfast
