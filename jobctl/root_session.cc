// SPDX-License-Identifier: Apache-2.0
#include "jobctl/root_session.h"

#include <unistd.h>

#include <cstdlib>

#include "daemon/node/process.h"

namespace holdfast {
namespace {

constexpr int kSaysMax = 3;
constexpr uint64_t kSayPauseMs = 1000;

std::string UserAtHost(const std::string& host) {
  const char* user = std::getenv("USER");
  return (user != nullptr && *user != '\0' ? std::string(user) : "uid" + std::to_string(::getuid())) + "@" + host;
}

// Past the shape of the command line, what the directory says about itself is a refusal; only trouble of the moment is not.
Error Refused(const Error& e) {
  const bool keep = e.code == ErrorCode::kUnsupported || e.code == ErrorCode::kNotFound || e.code == ErrorCode::kTransient || e.code == ErrorCode::kResourceExhausted;
  return keep ? e : InvalidArgument(e.message);
}

}  // namespace

RootSession::RootSession(const std::string& root, Clock& clock) : clock_(clock), layout_(root), self_(DescribeThisProcess(HostName(), "jobctl", "cpu")) {}

Result<std::unique_ptr<RootSession>> RootSession::Open(const std::string& root, RootUse use, Clock& clock) {
  if (root.empty()) return InvalidArgument("which root? Say `jobctl --root DIR ...`, or set HOLDFAST_ROOT to the directory that the nodes share");
  std::unique_ptr<RootSession> s(new RootSession(root, clock));
  const auto info = use == RootUse::kWrite ? EnsureRoot(s->posix_, s->layout_, s->self_.nonce) : ReadRoot(s->posix_, s->layout_);
  if (!info.ok()) return Annotate(Refused(info.error()), "--root");
  s->info_ = *info;
  s->fs_ = OpenFileSystemFor(s->posix_, s->info_);
  s->queue_ = std::make_unique<Queue>(s->fs(), s->layout_, s->info_.uuid);
  s->roster_ = std::make_unique<Roster>(s->fs(), s->layout_, s->info_.uuid);
  HOLDFAST_TRY(s->Refresh());
  return s;
}

RootSession::~RootSession() {
  // Ours alone, and nothing in it is wanted any more; a leftover does no harm.
  if (fs_ != nullptr) (void)fs_->RemoveTree(layout_.streams().TmpDir(self_.nonce));
}

Status RootSession::Refresh() {
  HOLDFAST_TRY(queue_->Refresh());
  const Status nodes = roster_->Refresh();
  warning_ = nodes.ok() ? "" : nodes.error().message;
  return OkStatus();
}

Status RootSession::Say(QueueRecord record, const std::function<Status(const Queue&)>& check) {
  record.by = UserAtHost(self_.hostname);
  Status said;
  for (int i = 0; i < kSaysMax; ++i) {
    if (i > 0) clock_.SleepMs(kSayPauseMs);
    said = queue_->Append(clock_, self_, record, check);
    if (said.code() != ErrorCode::kTransient) break;
  }
  return said;
}

std::string AtRoot(const std::string& root) { return "jobctl --root " + root; }

std::string KnownNodesText(const Roster& roster) {
  std::string text;
  for (const auto& [name, node] : roster.nodes()) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

}  // namespace holdfast
