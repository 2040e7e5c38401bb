// SPDX-License-Identifier: Apache-2.0
//
// jobctl nodes: every node that was ever seen in a root, what it has and what it does.
#include <unistd.h>

#include <cstdio>

#include "jobctl/options.h"
#include "jobctl/status_text.h"

namespace holdfast {

int NodesCommand(const NodesOptions& options) {
  RealClock clock;
  auto session = RootSession::Open(options.root, RootUse::kRead, clock);
  if (!session.ok()) return Fail(session.error(), options.json);
  const NodesSeen seen = NodeWatch(**session).Look();
  if (options.json) {
    Json nodes = Json::array();
    for (const NodeStatus& n : seen.nodes) nodes.push_back(ToJson(n));
    const Json doc{{"schema", kRootStatusSchema}, {"root", options.root}, {"answered_by", seen.answered_by}, {"commit", CommitText(seen)},
                   {"warnings", seen.warnings}, {"nodes", nodes}};
    std::printf("%s\n", doc.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
    return kExitOk;
  }
  std::printf("%s", RenderNodes(seen, (*session)->clock().WallNs(), UseColours()).c_str());
  return kExitOk;
}

}  // namespace holdfast
