// SPDX-License-Identifier: Apache-2.0
//
// jobctl cancel, and resume of a job in the queue: one record each. What was committed stays in the job's run directory either way.
#include <cstdio>

#include "jobctl/node_watch.h"
#include "jobctl/options.h"
#include "ledger/base/printable.h"
#include "ledger/fold/run_state.h"

namespace holdfast {
namespace {

using State = QueuedJob::State;

std::string Called(const QueuedJob& job) { return "job \"" + job.submit.name + "\" (" + job.submit.job + ")"; }

Status Append(RootSession* session, QueueRecord::Op op, const QueuedJob& job, const std::function<Status(const Queue&)>& check) {
  QueueRecord q;
  q.op = op;
  q.job = job.submit.job;
  return session->Say(q, check);
}

Result<std::string> Cancel(RootSession* session, const QueuedJob job) {
  if (job.state == State::kCancelled) return Called(job) + " is cancelled already";
  HOLDFAST_TRY(Append(session, QueueRecord::Op::kCancel, job, nullptr));
  const std::string& root = session->layout().root();
  return Called(job) + " is cancelled: its nodes stop within seconds. `" + AtRoot(root) + " resume " + job.submit.name + "` continues it; without that " +
         session->layout().JobDir(job.submit.job) + " may be deleted";
}

// What will happen now, or what has to be done that it does.
std::string WhoTakesIt(RootSession* session) {
  const NodesSeen seen = NodeWatch(*session).Look();
  if (seen.alive() > 0) return std::to_string(seen.alive()) + " daemon(s) alive to take it";
  return "no daemon is alive: it waits; start `holdfastd --root " + session->layout().root() + " --name NAME` on a node";
}

// Another job may have been given the output directory of a cancelled one.
Status OutIsOurs(const Queue& queue, const QueuedJob& job) {
  for (const QueuedJob& other : queue.jobs()) {
    if (other.submit.job == job.submit.job || other.submit.out != job.submit.out) continue;
    if (other.state == State::kRefused || other.state == State::kCancelled) continue;
    return InvalidArgument(Called(job) + ": its output directory " + job.submit.out + " belongs to " + Called(other) + " now; submit it again with another --out");
  }
  return OkStatus();
}

// A job that was done, of which a repair has voided something.
Result<bool> OpenAgain(RootSession* session, const QueuedJob& job) {
  const std::string dir = session->layout().JobDir(job.submit.job);
  RunState state(session->fs(), RunLayout(dir));
  const Status read = state.Refresh();
  if (read.code() == ErrorCode::kNotFound) return false;   // its run directory may be deleted
  if (!read.ok()) return read.error();
  return !state.done();
}

Result<std::string> Retry(RootSession* session, const QueuedJob job) {
  if (job.state == State::kDone) {
    HOLDFAST_ASSIGN(const bool open, OpenAgain(session, job));
    if (!open) return Called(job) + " is done: " + job.submit.out;
  }
  if (job.state == State::kRefused) return InvalidArgument(Called(job) + " was refused, nothing of it is there: mend what it says and submit it again: " + job.detail);
  if (job.state == State::kQueued) {
    const std::string held = session->queue().Held(job);
    return Called(job) + " is in the queue and needs no resume" + (held.empty() ? "" : " (" + held + ")") + "; " + WhoTakesIt(session);
  }
  HOLDFAST_TRY(Append(session, QueueRecord::Op::kRetry, job, [&](const Queue& queue) { return OutIsOurs(queue, job); }));
  return Called(job) + " is in the queue again, and goes on from what is committed; " + WhoTakesIt(session);
}

int Run(const JobOptions& options, const char* event, Result<std::string> (*act)(RootSession*, const QueuedJob)) {
  RealClock clock;
  auto session = RootSession::Open(options.root, RootUse::kRead, clock);
  if (!session.ok()) return Fail(session.error(), options.json);
  const auto job = (*session)->queue().Find(options.job);
  if (!job.ok()) return Fail(job.error(), options.json);
  const QueuedJob was = **job;             // saying something changes the queue
  const auto text = act(session->get(), was);
  if (!text.ok()) return Fail(text.error(), options.json);
  if (!options.json) {
    std::printf("%s\n", Printable(*text).c_str());
    return kExitOk;
  }
  const Json doc{{"event", event}, {"job", was.submit.job}, {"name", was.submit.name}, {"text", *text}};
  std::printf("%s\n", doc.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  return kExitOk;
}

}  // namespace

int CancelCommand(const JobOptions& options) { return Run(options, "cancel", Cancel); }
int ResumeJobCommand(const JobOptions& options) { return Run(options, "resume", Retry); }

}  // namespace holdfast
