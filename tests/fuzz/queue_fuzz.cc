// SPDX-License-Identifier: Apache-2.0
//
// The queue and the roster of a root whose slots are sound and whose records say anything (ledger_input.h): what does not decode, or may
// not be said at its place, is as good as not there.
#include "ledger/cluster/queue.h"

#include <algorithm>

#include "tests/fuzz/ledger_input.h"

namespace holdfast {
namespace {

void CheckQueue(const Queue& queue) {
  const auto runnable = queue.Runnable();
  for (const QueuedJob& job : queue.jobs()) {
    HOLDFAST_CHECK(IsJobId(job.submit.job) && (job.submit.name.empty() || IsPlainName(job.submit.name)));  // parts of paths
    const auto found = queue.Find(job.submit.job);
    HOLDFAST_CHECK(found.ok() && *found == &job);  // an id is there once
    const bool runs = std::find(runnable.begin(), runnable.end(), &job) != runnable.end();
    HOLDFAST_CHECK(runs == (job.state == QueuedJob::State::kQueued && queue.Held(job).empty()));
  }
  for (const std::string& node : queue.drained()) HOLDFAST_CHECK(IsPlainName(node));
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  SimFileSystem fs;
  const RootLayout root("/root");
  const Nonce uuid = fuzz::FixedNonce(1);
  Cursor in({data, size});
  fuzz::StreamForger forger(fs, root.streams(), uuid);
  fuzz::Forge(&in, {RootLayout::QueueStream(), RootLayout::NodeStream("n1"), RootLayout::NodeStream("n2")}, &forger);
  Queue queue(fs, root, uuid);
  HOLDFAST_CHECK(fs.MakeDirs(root.streams().LogDir()).ok());
  const Status s = queue.Refresh();
  if (s.ok()) CheckQueue(queue);
  else fuzz::CheckRefusal(s);
  Roster roster(fs, root, uuid);
  if (const Status r = roster.Refresh(); !r.ok()) fuzz::CheckRefusal(r);
  for (const auto& [name, node] : roster.nodes()) HOLDFAST_CHECK(node.name == name);
  return 0;
}
