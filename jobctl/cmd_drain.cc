// SPDX-License-Identifier: Apache-2.0
//
// jobctl drain / undrain: whether a node gets work. A drained node commits what it has in flight and keeps its daemon.
#include <cstdio>

#include "jobctl/node_watch.h"
#include "jobctl/options.h"

namespace holdfast {
namespace {

Result<std::string> Say(RootSession* session, const DrainOptions& o) {
  const bool drain = o.what == Drain::kDrain;
  if (!session->roster().nodes().contains(o.node)) {
    return NotFound("node \"" + o.node + "\": never seen in " + o.root + "; known: " + KnownNodesText(session->roster()));
  }
  if (session->queue().drained().contains(o.node) == drain) return o.node + (drain ? " is drained already" : " is not drained");
  QueueRecord q;
  q.op = drain ? QueueRecord::Op::kDrain : QueueRecord::Op::kUndrain;
  q.node = o.node;
  HOLDFAST_TRY(session->Say(q, nullptr));
  return o.node + (drain ? " gets no more work: its stages move to other nodes. `" + AtRoot(o.root) + " undrain " + o.node + "` ends that" : " takes work again");
}

}  // namespace

int DrainCommand(const DrainOptions& options) {
  RealClock clock;
  auto session = RootSession::Open(options.root, RootUse::kRead, clock);
  if (!session.ok()) return Fail(session.error(), options.json);
  const auto said = Say(session->get(), options);
  if (!said.ok()) return Fail(said.error(), options.json);
  if (!options.json) {
    std::printf("%s\n", said->c_str());
    return kExitOk;
  }
  const Json doc{{"event", options.what == Drain::kDrain ? "drain" : "undrain"}, {"node", options.node}, {"text", *said}};
  std::printf("%s\n", doc.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  return kExitOk;
}

}  // namespace holdfast
