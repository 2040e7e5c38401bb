// SPDX-License-Identifier: Apache-2.0
//
// What jobctl prints of beats and records that others wrote. Input: length of the beat (u16), the beat, then the JSON of a queue record.
// The output is one JSON document, and for people nothing that a terminal would obey.
#include <algorithm>

#include "jobctl/job_status.h"
#include "jobctl/status_text.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

constexpr uint64_t kNow = 1700000000000000000;

NodeStatus NodeOf(const Beat& beat) {
  NodeStatus n;
  n.known.name = beat.node;
  n.known.incarnation.node = beat.node;
  n.known.incarnation.hostname = beat.hostname;
  n.known.incarnation.nonce = beat.incarnation;
  n.life = NodeLife::kAlive;
  n.beat = beat;
  return n;
}

JobStatus JobOf(const QueueRecord& q) {
  JobStatus job;
  job.id = q.job, job.name = q.name, job.source = q.source, job.out = q.out, job.detail = q.detail;
  job.state = q.detail.empty() ? "queued" : "failed";
  job.after = q.after, job.shard_layers = q.shard_layers, job.on = q.on, job.priority = static_cast<int>(q.priority);
  job.next = NextCommand(job, "/root", true);
  return job;
}

void CheckText(const std::string& text) {
  HOLDFAST_CHECK(std::ranges::none_of(text, [](char c) { return (static_cast<uint8_t>(c) < 0x20 && c != '\n') || c == 0x7f; }));
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  Cursor in({data, size});
  const Bytes beat_bytes = fuzz::TakeBytes(&in, fuzz::Take<uint16_t>(&in));
  RootStatus status;
  status.root = "/root";
  if (const auto beat = Beat::Decode(AsText(beat_bytes)); beat.ok()) status.nodes.nodes.push_back(NodeOf(*beat));
  if (const auto json = ParseJson(AsText(in.rest()), "record"); json.ok()) {
    if (const auto record = QueueRecord::FromJson(*json); record.ok()) status.jobs.push_back(JobOf(*record));
  }
  const NightSummary summary = Summarize(status, kNow);
  const Json j = ToJson(status, summary);
  const auto again = ParseJson(j.dump(-1, ' ', false, Json::error_handler_t::replace), "status");
  HOLDFAST_CHECK(again.ok() && *again == j);
  CheckText(RenderStatus(status, summary, kNow, Colours::kNo));
  CheckText(RenderNodes(status.nodes, kNow, Colours::kNo));
  for (const JobStatus& job : status.jobs) CheckText(RenderJob(job, Colours::kNo));
  return 0;
}
