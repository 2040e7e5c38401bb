// SPDX-License-Identifier: Apache-2.0
//
// jobctl keygen: CURVE keys of nodes and of jobctl itself, in the root. Existing keys are never replaced.
#include <cstdio>

#include "daemon/node/process.h"
#include "daemon/transport/keys.h"
#include "jobctl/options.h"
#include "jobctl/root_session.h"

namespace holdfast {
namespace {

Status MakeOne(RootSession* session, const std::string& name) {
  const std::string dir = session->layout().KeysDir();
  HOLDFAST_TRY(CheckName("keygen", name));
  HOLDFAST_ASSIGN(const bool there, session->fs().Exists(JoinPath(dir, name + ".public")));
  HOLDFAST_TRY(MakeKeys(dir, name));
  std::printf("%s  %s\n", there ? "kept" : "made", JoinPath(dir, name + ".public").c_str());
  return OkStatus();
}

}  // namespace

int KeygenCommand(const KeygenOptions& options) {
  RealClock clock;
  auto session = RootSession::Open(options.root, RootUse::kWrite, clock);
  if (!session.ok()) return Fail(session.error(), false);
  std::vector<std::string> names = options.names;
  if (names.empty()) names.push_back(HostName());
  const std::vector<std::string> nodes = names;
  names.insert(names.begin(), "jobctl");
  for (const std::string& name : names) {
    const Status made = MakeOne(session->get(), name);
    if (!made.ok()) return Fail(made.error(), false);
  }
  std::printf("Who can read the .secret files is that node: %s must be readable by the user of the daemons alone.\n", (*session)->layout().KeysDir().c_str());
  std::printf("Next, on each node (a daemon that runs without keys has to be started again):\n");
  for (const std::string& name : nodes) std::printf("    holdfastd --root %s --name %s --listen ADDRESS\n", options.root.c_str(), name.c_str());
  return kExitOk;
}

}  // namespace holdfast
