// SPDX-License-Identifier: Apache-2.0
//
// jobctl logs: what the nodes wrote down about one job, by time.
#include <algorithm>
#include <cstdio>
#include <map>

#include "jobctl/log_merge.h"
#include "jobctl/options.h"
#include "ledger/base/printable.h"
#include "jobctl/root_session.h"

namespace holdfast {
namespace {

constexpr char kSuffix[] = ".log";
constexpr uint64_t kFollowMs = 500;
constexpr uint64_t kReadMax = 64u << 20;   // of one file at once; what is older is left out

class Logs {
 public:
  Logs(RootSession* session, std::string job, std::string node) : session_(session), job_(std::move(job)), node_(std::move(node)) {}

  Result<std::vector<std::string>> Nodes() {
    const std::string dir = DirName(session_->layout().JobLog(job_, "n"));
    const auto names = session_->fs().List(dir);
    std::vector<std::string> nodes;
    if (names.code() == ErrorCode::kNotFound) return nodes;
    if (!names.ok()) return names.error();
    for (const std::string& name : *names) {
      if (name.size() > sizeof kSuffix - 1 && name.ends_with(kSuffix)) nodes.push_back(name.substr(0, name.size() - (sizeof kSuffix - 1)));
    }
    return nodes;
  }

  // What was written since the last call, whole lines only unless `all`.
  Result<std::vector<LogText>> ReadNew(bool all) {
    std::vector<LogText> logs;
    HOLDFAST_ASSIGN(const auto nodes, Nodes());
    for (const std::string& node : nodes) {
      if (!node_.empty() && node != node_) continue;
      LogText log{node, ""};
      HOLDFAST_TRY(ReadOne(node, all, &log.text));
      logs.push_back(std::move(log));
    }
    return logs;
  }

 private:
  Status ReadOne(const std::string& node, bool all, std::string* text) {
    HOLDFAST_ASSIGN(const auto file, session_->fs().Open(session_->layout().JobLog(job_, node)));
    uint64_t& at = at_[node];
    if (file->size() < at) at = 0;         // begun anew
    if (file->size() - at > kReadMax) at = file->size() - kReadMax;
    Bytes bytes(file->size() - at);
    HOLDFAST_TRY(file->Read(at, bytes));
    text->assign(AsText(bytes));
    if (!all) text->resize(text->rfind('\n') == std::string::npos ? 0 : text->rfind('\n') + 1);
    at += text->size();
    return OkStatus();
  }

  RootSession* session_;
  std::string job_, node_;
  std::map<std::string, uint64_t> at_;     // by node: what has been read
};

Status Refuse(RootSession* session, const QueuedJob& job, const LogsOptions& o, const std::vector<std::string>& nodes) {
  if (!o.node.empty() && !session->roster().nodes().contains(o.node)) {
    return NotFound("--node " + o.node + ": never seen in " + o.root + "; known: " + KnownNodesText(session->roster()));
  }
  const bool there = o.node.empty() ? !nodes.empty() : std::find(nodes.begin(), nodes.end(), o.node) != nodes.end();
  if (there) return OkStatus();
  return NotFound("job \"" + job.submit.name + "\": " + (o.node.empty() ? "no node has written a log" : o.node + " has written no log") + " yet; `" +
                  AtRoot(o.root) + " status " + job.submit.name + "` says where the job stands");
}

Status Print(RootSession* session, const LogsOptions& o) {
  HOLDFAST_ASSIGN(const QueuedJob* job, session->queue().Find(o.job));
  Logs logs(session, job->submit.job, o.node);
  HOLDFAST_ASSIGN(const auto nodes, logs.Nodes());
  if (!o.follow) HOLDFAST_TRY(Refuse(session, *job, o, nodes));
  for (;;) {
    HOLDFAST_ASSIGN(const auto fresh, logs.ReadNew(!o.follow));
    std::printf("%s", Printable(MergeLogs(fresh), LineBreaks::kKeep).c_str());
    std::fflush(stdout);
    if (!o.follow || std::ferror(stdout) != 0) return OkStatus();
    session->clock().SleepMs(kFollowMs);
  }
}

}  // namespace

int LogsCommand(const LogsOptions& options) {
  RealClock clock;
  auto session = RootSession::Open(options.root, RootUse::kRead, clock);
  if (!session.ok()) return Fail(session.error(), false);
  const Status printed = Print(session->get(), options);
  return printed.ok() ? kExitOk : Fail(printed.error(), false);
}

}  // namespace holdfast
