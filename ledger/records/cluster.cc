// SPDX-License-Identifier: Apache-2.0
//
// Records of a cluster: who is to work on what, and what was said in the queue of a root. Job ids and names become parts of paths,
// so that a decoder lets nothing else pass.
#include <array>
#include <utility>

#include "ledger/records/fields.h"
#include "ledger/records/records.h"

namespace holdfast {
namespace {

using Op = QueueRecord::Op;

constexpr std::array<std::pair<Op, const char*>, 7> kOps = {{
    {Op::kSubmit, "submit"}, {Op::kRefuse, "refuse"}, {Op::kCancel, "cancel"}, {Op::kRetry, "retry"},
    {Op::kFinish, "finish"}, {Op::kDrain, "drain"}, {Op::kUndrain, "undrain"},
}};

bool IsLetterOrDigit(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

// "" or a plain name: nodes that may be left open.
bool IsNameOrNone(const std::string& name) { return name.empty() || IsPlainName(name); }

Status ReadEntry(const Json& v, Assignment::Entry* e) {
  Fields f(v, "assignment record, stage");
  f.Get("stage", &e->stage.value).Get("node", &e->node).Get("note", &e->note).AtMost("note", e->note, kTextBytesMax);
  f.Optional("device", &e->device).AtMost("device", e->device, kNameBytesMax);
  if (!IsNameOrNone(e->node)) f.Fail("field \"node\" is not the name of a node");
  return f.status();
}

// What each op needs, besides what all share.
void CheckOp(const QueueRecord& q, Fields* f) {
  const bool of_node = q.op == Op::kDrain || q.op == Op::kUndrain;
  if (of_node && !IsPlainName(q.node)) f->Fail("field \"node\" is not the name of a node");
  if (!of_node && !IsJobId(q.job)) f->Fail("field \"job\" is not a job id (12 hex digits)");
  if (of_node && !q.job.empty()) f->Fail("field \"job\" does not belong to a record about a node");
  if (q.op == Op::kFinish && q.outcome != "done" && q.outcome != "failed") f->Fail("field \"outcome\" is neither done nor failed");
  for (const std::string& job : q.after) {
    if (!IsPlainName(job)) f->Fail("field \"after\" holds something that is no job");
  }
  for (const std::string& node : q.on) {
    if (!IsNameOrNone(node)) f->Fail("field \"on\" holds something that is no node");
  }
  for (const uint32_t layers : q.shard_layers) {
    if (layers == 0) f->Fail("field \"shard_layers\" holds a stage without layers");
  }
}

}  // namespace

bool IsPlainName(const std::string& name) {
  if (name.empty() || name.size() > kNameBytesMax || !IsLetterOrDigit(name[0])) return false;
  for (const char c : name) {
    if (!IsLetterOrDigit(c) && c != '_' && c != '.' && c != '-') return false;
  }
  return true;
}

bool IsJobId(const std::string& id) { return id.size() == 12 && id.find_first_not_of("0123456789abcdef") == std::string::npos; }

Json Assignment::ToJson() const {
  Json list = Json::array();
  for (const Entry& e : stages) {
    Json entry{{"stage", e.stage.value}, {"node", e.node}, {"note", e.note}};
    if (!e.device.empty()) entry["device"] = e.device;
    list.push_back(std::move(entry));
  }
  return {{"number", number}, {"plan", plan}, {"stages", std::move(list)}, {"merge_node", merge_node}, {"numerics", numerics}, {"why", why}};
}

Result<Assignment> Assignment::FromJson(const Json& j) {
  Assignment a;
  Fields f(j, "assignment record");
  f.Get("number", &a.number).Get("plan", &a.plan).Array("stages", &a.stages, ReadEntry).Get("merge_node", &a.merge_node)
      .Get("numerics", &a.numerics).Get("why", &a.why);
  f.AtMost("stages", a.stages, kListMax).AtMost("numerics", a.numerics, kPathBytesMax).AtMost("why", a.why, kTextBytesMax);
  if (!IsNameOrNone(a.merge_node)) f.Fail("field \"merge_node\" is not the name of a node");
  HOLDFAST_TRY(f.status());
  return a;
}

Json QueueRecord::ToJson() const {
  const char* spelled = "";
  for (const auto& [value, text] : kOps) {
    if (value == op) spelled = text;
  }
  return {{"op", spelled}, {"job", job}, {"name", name}, {"node", node}, {"source", source}, {"out", out}, {"after", after},
          {"priority", priority}, {"shard_layers", shard_layers}, {"on", on}, {"reproducible", reproducible}, {"notify", notify},
          {"outcome", outcome}, {"detail", detail}, {"by", by}};
}

Result<QueueRecord> QueueRecord::FromJson(const Json& j) {
  QueueRecord q;
  std::string op;
  Fields f(j, "queue record");
  f.Get("op", &op).Get("job", &q.job).Get("name", &q.name).Get("node", &q.node).Get("source", &q.source).Get("out", &q.out)
      .Array("after", &q.after).Get("priority", &q.priority).Array("shard_layers", &q.shard_layers).Array("on", &q.on)
      .Get("reproducible", &q.reproducible).Get("notify", &q.notify).Get("outcome", &q.outcome).Get("detail", &q.detail).Get("by", &q.by);
  f.AtMost("after", q.after, kListMax).AtMost("shard_layers", q.shard_layers, kListMax).AtMost("on", q.on, kListMax);
  f.AtMost("source", q.source, kPathBytesMax).AtMost("out", q.out, kPathBytesMax).AtMost("notify", q.notify, kTextBytesMax)
      .AtMost("detail", q.detail, kTextBytesMax).AtMost("by", q.by, kPathBytesMax);
  bool known = false;
  for (const auto& [value, text] : kOps) {
    if (op == text) q.op = value, known = true;
  }
  if (!known) f.Fail("field \"op\" is nothing that this version knows");
  if (!IsNameOrNone(q.name)) f.Fail("field \"name\" is not the name of a job");
  if (f.status().ok()) CheckOp(q, &f);
  HOLDFAST_TRY(f.status());
  return q;
}

}  // namespace holdfast
