// SPDX-License-Identifier: Apache-2.0
#include "ledger/cluster/queue.h"

#include <algorithm>

namespace holdfast {
namespace {

using Op = QueueRecord::Op;
using State = QueuedJob::State;

constexpr size_t kPrefixMin = 4;      // digits of an id that stand for it
constexpr size_t kListedMax = 20;     // jobs that a message lists

const char* Spelled(Op op) {
  switch (op) {
    case Op::kSubmit: return "submit";
    case Op::kRefuse: return "refuse";
    case Op::kCancel: return "cancel";
    case Op::kRetry: return "retry";
    case Op::kFinish: return "finish";
    case Op::kDrain: return "drain";
    case Op::kUndrain: return "undrain";
  }
  return "";
}

const char* Spelled(State state) {
  switch (state) {
    case State::kQueued: return "queued";
    case State::kDone: return "done";
    case State::kFailed: return "failed";
    case State::kCancelled: return "cancelled";
    case State::kRefused: return "refused";
  }
  return "";
}

std::string NameOf(const QueuedJob& job) { return job.submit.name.empty() ? job.submit.job : job.submit.name; }

std::string NameAndId(const QueuedJob& job) { return job.submit.name.empty() ? job.submit.job : job.submit.name + " (" + job.submit.job + ")"; }

// The latest first.
std::string Listed(const std::vector<const QueuedJob*>& jobs) {
  std::string text;
  for (size_t i = 0; i < jobs.size() && i < kListedMax; ++i) text += (i == 0 ? "" : ", ") + NameAndId(*jobs[jobs.size() - 1 - i]);
  return jobs.size() > kListedMax ? text + ", ..." : text;
}

}  // namespace

Queue::Queue(FileSystem& fs, RootLayout layout, Nonce root_uuid)
    : fs_(fs), layout_(std::move(layout)), uuid_(root_uuid),
      reader_(std::make_unique<StreamReader>(fs_, layout_.streams(), RootLayout::QueueStream(), uuid_)) {}

Status Queue::Refresh() {
  return reader_->Poll([this](const Record& r, const Slot& s) { return Apply(r, s); });
}

uint32_t Queue::next_seq() const { return reader_->state().next_seq; }

const QueuedJob* Queue::ById(const std::string& id) const {
  const auto it = std::find_if(jobs_.begin(), jobs_.end(), [&](const QueuedJob& j) { return j.submit.job == id; });
  return it == jobs_.end() ? nullptr : &*it;
}

Result<const QueuedJob*> Queue::Find(const std::string& wanted) const {
  if (const QueuedJob* job = ById(wanted)) return job;
  const QueuedJob* named = nullptr;  // of a name that was refused and given again, the latter counts
  std::vector<const QueuedJob*> all, fitting;
  for (const QueuedJob& job : jobs_) {
    all.push_back(&job);
    if (!wanted.empty() && job.submit.name == wanted && (named == nullptr || named->state == State::kRefused)) named = &job;
    if (wanted.size() >= kPrefixMin && job.submit.job.starts_with(wanted)) fitting.push_back(&job);
  }
  if (named != nullptr) return named;
  if (fitting.size() == 1) return fitting[0];
  if (fitting.size() > 1) return InvalidArgument("job \"" + wanted + "\" fits several: " + Listed(fitting) + "; type more digits");
  if (all.empty()) return NotFound("job \"" + wanted + "\": nothing was submitted in " + layout_.root() + " yet; `jobctl submit` does that");
  return NotFound("job \"" + wanted + "\": no such job in " + layout_.root() + "; there are " + Listed(all));
}

// ---- what may run ----

std::string Queue::Held(const QueuedJob& job) const {
  if (job.state != State::kQueued) return "";
  std::string waits;
  for (const std::string& id : job.submit.after) {
    const QueuedJob* before = ById(id);
    if (before == nullptr || before->state == State::kDone) continue;  // a submission names jobs that are there
    const std::string name = NameOf(*before);
    if (before->state != State::kQueued) {
      const std::string resume = before->state == State::kRefused ? "" : "`jobctl resume " + name + "`, or ";
      return name + (before->state == State::kFailed ? " failed" : std::string(" was ") + Spelled(before->state)) + ": " + resume + "`jobctl cancel " + NameOf(job) + "`";
    }
    waits += (waits.empty() ? "waits for " : ", ") + name;
  }
  return waits;
}

std::vector<const QueuedJob*> Queue::Runnable() const {
  std::vector<const QueuedJob*> jobs;
  for (const QueuedJob& job : jobs_) {
    if (job.state == State::kQueued && Held(job).empty()) jobs.push_back(&job);
  }
  std::stable_sort(jobs.begin(), jobs.end(), [](const QueuedJob* a, const QueuedJob* b) { return a->submit.priority > b->submit.priority; });
  return jobs;
}

// ---- what may be said ----

Result<Queue::Effect> Queue::JudgeSubmit(QueueRecord* record) const {
  for (std::string& before : record->after) {
    const auto found = Find(before);
    if (!found.ok()) return Annotate(found.error(), "--after");
    before = (*found)->submit.job;
  }
  if (const QueuedJob* same = ById(record->job)) {
    if (same->submit.ToJson() == record->ToJson()) return Effect::kSaidBefore;
    if (record->op == Op::kRefuse && same->state == State::kQueued) return Effect::kChange;
    if (record->op == Op::kRefuse && same->state == State::kRefused) return Effect::kSaidBefore;
    return MakeError(ErrorCode::kAlreadyExists, "job " + NameAndId(*same) + " is " + Spelled(same->state) + " already; submit under a new id");
  }
  if (record->op == Op::kRefuse) return Effect::kChange;
  for (const QueuedJob& job : jobs_) {
    if (record->name.empty() || job.submit.name != record->name || job.state == State::kRefused) continue;
    return MakeError(ErrorCode::kAlreadyExists, "job name \"" + record->name + "\" is taken by job " + job.submit.job + ", which is " + Spelled(job.state) + "; choose another with --name");
  }
  return Effect::kChange;
}

// Of cancel, retry, finish. That a job is done is said by its own ledger: nothing else stands against it.
Result<Queue::Effect> Queue::JudgeEnd(const QueueRecord& record, const QueuedJob& job) const {
  const State wanted = record.op == Op::kCancel ? State::kCancelled : record.op == Op::kRetry ? State::kQueued : record.outcome == "done" ? State::kDone : State::kFailed;
  if (job.state == wanted) return Effect::kSaidBefore;
  const std::string what = "job " + NameAndId(job) + " ";
  if (job.state == State::kRefused) return InvalidArgument(what + "was refused when it was submitted; submit it again");
  // A job that is done may be put back: a repair can have opened its work again, which only its own ledger knows. That is for who says it to check.
  if (job.state == State::kDone && record.op != Op::kRetry) return InvalidArgument(what + "is done; there is nothing to " + Spelled(record.op));
  if (wanted == State::kFailed && job.state != State::kQueued) return InvalidArgument(what + "is " + Spelled(job.state) + "; it cannot fail");
  return Effect::kChange;
}

Result<Queue::Effect> Queue::Judge(QueueRecord* record) const {
  switch (record->op) {
    case Op::kSubmit:
    case Op::kRefuse: return JudgeSubmit(record);
    case Op::kCancel:
    case Op::kRetry:
    case Op::kFinish: {
      const QueuedJob* job = ById(record->job);
      if (job == nullptr) return NotFound("job \"" + record->job + "\": no such job in " + layout_.root());
      return JudgeEnd(*record, *job);
    }
    case Op::kDrain: return drained_.contains(record->node) ? Effect::kSaidBefore : Effect::kChange;
    case Op::kUndrain: return drained_.contains(record->node) ? Effect::kChange : Effect::kSaidBefore;
  }
  return InvalidArgument("a queue record of no known kind");
}

bool Queue::Said(const Nonce& incarnation, const QueueRecord& record) const {
  if (record.op == Op::kSubmit || record.op == Op::kRefuse) return true;  // an id is drawn once
  const QueuedJob* job = ById(record.job);
  return job != nullptr && job->told_by == incarnation;
}

Status Queue::Append(const Clock& clock, const Incarnation& self, const QueueRecord& record, const std::function<Status(const Queue&)>& check) {
  if (const auto sound = QueueRecord::FromJson(record.ToJson()); !sound.ok()) return InvalidArgument(sound.error().message);
  bool holds = false;
  StreamWriter::Options options;
  options.job = uuid_;
  options.claim.incarnation = self.nonce;
  options.claim.node = self.node;
  options.claim.pid = self.pid;
  options.claim.numerics = self.numerics;
  options.claim.reason = Spelled(record.op);
  options.before_try = [&]() -> Status {
    QueueRecord judged = record;
    HOLDFAST_ASSIGN(const Effect effect, Judge(&judged));
    const bool again = effect == Effect::kSaidBefore && Said(self.nonce, judged);
    if (!again && check) HOLDFAST_TRY(check(*this));
    holds = effect == Effect::kSaidBefore;
    return holds ? Stopped("said before") : OkStatus();
  };
  const auto apply = [this](const Record& r, const Slot& s) { return Apply(r, s); };
  const auto writer = StreamWriter::Open(fs_, layout_.streams(), clock, reader_.get(), apply, options,
                                         {MakeControl({RecordClass::kIncarnation, 0, 0, 0, 0}, self.ToJson()), MakeControl({RecordClass::kQueue, 0, 0, 0, 0}, record.ToJson())});
  if (holds) return fs_.SyncDir(layout_.streams().StreamDir(RootLayout::QueueStream()));  // whoever said it may have died before he did
  if (!writer.ok()) return writer.error();
  return OkStatus();
}

// ---- the fold ----

// What does not decode, or may not be said at its place, is as good as not there.
Status Queue::Apply(const Record& record, const Slot& slot) {
  if (record.key.cls != RecordClass::kQueue) return OkStatus();
  const auto json = ControlPayload(record);
  if (!json.ok()) return OkStatus();
  auto said = QueueRecord::FromJson(*json);
  if (!said.ok()) return OkStatus();
  const auto effect = Judge(&*said);
  if (effect.ok() && *effect == Effect::kChange) Change(*said, record.wall_ns, slot);
  return OkStatus();
}

void Queue::Change(const QueueRecord& record, uint64_t wall_ns, const Slot& slot) {
  if (record.op == Op::kDrain) drained_.insert(record.node);
  if (record.op == Op::kUndrain) drained_.erase(record.node);
  if (record.op == Op::kDrain || record.op == Op::kUndrain) return;
  auto job = std::find_if(jobs_.begin(), jobs_.end(), [&](const QueuedJob& j) { return j.submit.job == record.job; });
  if (job == jobs_.end()) {
    job = jobs_.emplace(jobs_.end());
    job->submit = record;
    job->order = slot.seq;
    job->submitted_wall_ns = wall_ns;
  }
  job->told_by = slot.incarnation;
  job->ended_wall_ns = wall_ns;
  job->detail = record.detail;
  switch (record.op) {
    case Op::kRefuse: job->state = State::kRefused; break;
    case Op::kCancel:
      job->state = State::kCancelled;
      if (job->detail.empty() && !record.by.empty()) job->detail = "cancelled by " + record.by;
      break;
    case Op::kFinish: job->state = record.outcome == "done" ? State::kDone : State::kFailed; break;
    default:  // submit, retry
      job->retries += record.op == Op::kRetry ? 1 : 0;
      job->state = State::kQueued;
      job->ended_wall_ns = 0;
      break;
  }
}

}  // namespace holdfast
