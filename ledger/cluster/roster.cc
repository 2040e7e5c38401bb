// SPDX-License-Identifier: Apache-2.0
//
// The roster: who there is, from the streams of the nodes. The name of the stream is the name of the node, whatever a record claims.
#include "ledger/cluster/queue.h"

namespace holdfast {

constexpr const char* kPrefix = "node.";

Roster::Roster(FileSystem& fs, RootLayout layout, Nonce root_uuid) : fs_(fs), layout_(std::move(layout)), uuid_(root_uuid) {}

StreamReader* Roster::ReaderOf(const std::string& node) {
  std::unique_ptr<StreamReader>& reader = readers_[node];
  if (reader == nullptr) {
    reader = std::make_unique<StreamReader>(fs_, layout_.streams(), RootLayout::NodeStream(node), uuid_);
    reader->set_sink([this, node](const Record& r, const Slot&) { return Apply(node, r); });
  }
  return reader.get();
}

Status Roster::Refresh() {
  const auto streams = fs_.List(layout_.streams().LogDir());
  if (streams.code() == ErrorCode::kNotFound) return OkStatus();
  if (!streams.ok()) return streams.error();
  Status first;
  for (const std::string& stream : *streams) {
    const std::string node = stream.starts_with(kPrefix) ? stream.substr(std::string(kPrefix).size()) : "";
    if (!IsPlainName(node)) continue;
    const Status polled = ReaderOf(node)->Poll([&](const Record& r, const Slot&) { return Apply(node, r); });
    if (first.ok() && !polled.ok()) first = polled;
  }
  return first;
}

// In a slot, the claim comes before the incarnation that makes it.
Status Roster::Apply(const std::string& node, const Record& record) {
  const auto json = ControlPayload(record);
  if (!json.ok()) return OkStatus();
  if (record.key.cls == RecordClass::kClaim) {
    const auto claim = Claim::FromJson(*json);
    if (!claim.ok()) return OkStatus();
    KnownNode& known = nodes_[node];
    const uint32_t lives = known.lives + 1;
    known = KnownNode{};
    known.name = node;
    known.lives = lives;
    known.claimed_wall_ns = record.wall_ns;
    known.incarnation.node = node;
    known.incarnation.nonce = claim->incarnation;
    known.incarnation.pid = claim->pid;
    known.incarnation.numerics = claim->numerics;
  } else if (const auto known = nodes_.find(node); known == nodes_.end()) {
    return OkStatus();
  } else if (record.key.cls == RecordClass::kIncarnation) {
    auto life = Incarnation::FromJson(*json);
    if (life.ok() && life->nonce == known->second.incarnation.nonce && life->node == node) known->second.incarnation = std::move(*life);
  } else if (record.key.cls == RecordClass::kRelease) {
    const auto release = Release::FromJson(*json);
    known->second.released = true;
    known->second.reason = release.ok() ? release->reason : "";
  }
  return OkStatus();
}

}  // namespace holdfast
