// SPDX-License-Identifier: Apache-2.0
#include "jobctl/job_plan.h"

#include <algorithm>
#include <map>

#include "daemon/core/words.h"
#include "daemon/node/job_driver.h"
#include "export/shard/output_plan.h"
#include "jobctl/options.h"

namespace holdfast {
namespace {

std::string LayersOf(const LayerRange& r) { return std::to_string(r.first) + "-" + std::to_string(r.second - 1); }

// A stage that was asked to lie on one node must fit there: nobody asked for another.
Status FitsWhereAsked(const std::vector<LayerRange>& ranges, const std::vector<std::string>& on, const std::vector<NodeView>& nodes,
                      const SeatMemory& memory) {
  for (size_t i = 0; i < on.size(); ++i) {
    std::vector<NodeView> seats;
    std::copy_if(nodes.begin(), nodes.end(), std::back_inserter(seats), [&](const NodeView& n) { return NodeOfSeat(n.name) == on[i]; });
    const auto fits = [&](const NodeView& seat) { return memory.FitsStreamed(seat, ranges[i], seat.memory_bytes); };
    if (seats.empty() || std::any_of(seats.begin(), seats.end(), fits)) continue;
    return InvalidArgument("--on " + on[i] + ": layers " + LayersOf(ranges[i]) + " do not fit: " + LackText(ranges[i], seats, memory) +
                           "; give it fewer layers, or leave --on out");
  }
  return OkStatus();
}

Result<std::vector<PlacedRange>> Place(const JobDemand& demand, const std::vector<LayerRange>& ranges, const std::vector<std::string>& on,
                                       const std::vector<NodeView>& nodes, const SeatMemory& memory) {
  if (ranges.empty()) return CutAndPlace(demand.plan->layers, nodes, memory);
  HOLDFAST_TRY(FitsWhereAsked(ranges, on, nodes, memory));
  std::vector<StageWish> wishes;
  for (size_t i = 0; i < ranges.size(); ++i) wishes.push_back({.layers = ranges[i], .asked = on.empty() ? "" : on[i], .owner = {}, .barred = {}});
  const std::vector<StagePlace> places = PlaceStages(wishes, nodes, memory);
  std::vector<PlacedRange> placed;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const auto alone = places[i].node.empty() ? SplitRange(ranges[i], nodes, memory) : std::nullopt;   // streamed there
    if (alone && alone->size() == 1 && !alone->front().node.empty()) {
      placed.push_back(alone->front());
      continue;
    }
    if (places[i].node.empty()) {
      return InvalidArgument("--shard-layers: layers " + LayersOf(ranges[i]) + " fit on no node that is known: " + places[i].note +
                             "; cut them smaller, or leave --shard-layers out");
    }
    placed.push_back({ranges[i], places[i].node});
  }
  return placed;
}

// The slowest node's arithmetic, then everything through the shared directory.
std::optional<uint64_t> Estimate(const JobDemand& demand, const JobPlan& plan, const std::vector<NodeView>& nodes) {
  std::map<std::string, double> busy;
  for (const PlannedStage& s : plan.stages) {
    const auto node = std::find_if(nodes.begin(), nodes.end(), [&](const NodeView& n) { return n.name == s.node; });
    if (node == nodes.end() || node->speed <= 1) return std::nullopt;
    busy[s.node] += FlopsOf(*demand.decoder, s.layers.second - s.layers.first, demand.seq_len) * demand.samples / (static_cast<double>(node->speed) * 1e6);
  }
  double slowest = 0;
  for (const auto& [name, seconds] : busy) slowest = std::max(slowest, seconds);
  return static_cast<uint64_t>(slowest) + (plan.bytes_read + plan.bytes_written) / kSharedBytesPerSecond + 1;
}

}  // namespace

NodeView ViewOf(const NodeStatus& node) {
  const Incarnation& i = node.known.incarnation;
  NodeView v;
  v.name = node.known.name;
  v.incarnation = i.nonce;
  v.memory_bytes = node.beat ? node.beat->memory_bytes : i.memory_bytes;
  v.host_bytes = node.beat ? node.beat->host_bytes : 0;
  v.speed = std::max<uint64_t>(1, i.speed);
  v.version = i.version;
  v.numerics = i.numerics;
  for (const DeviceBeat& d : node.beat ? node.beat->devices : std::vector<DeviceBeat>{}) {
    v.devices.push_back({d.name, d.numerics, d.memory_bytes, 0, std::max<uint64_t>(1, d.speed), d.host_bytes});
  }
  return v;
}

double FlopsOf(const DecoderSpec& spec, uint32_t layers, uint64_t tokens) {
  double linears = 0;
  for (const LinearSpec& l : LayerLinears(spec)) linears += static_cast<double>(l.rows) * static_cast<double>(l.cols);
  const double x = static_cast<double>(tokens);
  const double attention = x * x * spec.heads * spec.head_dim;   // causal: half of every score and of every weighted sum
  return 2.0 * layers * (linears * x + attention);
}

Result<JobPlan> PlanJob(const JobDemand& demand, const std::vector<LayerRange>& ranges, const std::vector<std::string>& on,
                        const std::vector<NodeView>& of_nodes) {
  JobPlan out;
  std::vector<NodeView> nodes;                 // seats, from here on
  for (const NodeView& n : of_nodes) {
    for (NodeView& seat : SeatsOf(n)) nodes.push_back(std::move(seat));
  }
  const SeatMemory memory = LeastMemoryOf(*demand.decoder, *demand.plan, demand.seq_len);
  if (nodes.empty()) {
    const std::vector<LayerRange> whole = {{0, demand.plan->layers}};
    const StageMemory on_a_cpu = memory.Of({});
    for (const LayerRange& r : ranges.empty() ? whole : ranges) out.stages.push_back({r, "", on_a_cpu(r.first, r.second), 0, false});
  } else {
    const auto placed = Place(demand, ranges, on, nodes, memory);
    if (!placed.ok()) return InvalidArgument(placed.error().message);
    for (const PlacedRange& p : *placed) {
      const auto node = std::find_if(nodes.begin(), nodes.end(), [&](const NodeView& n) { return n.name == p.node; });
      const StageMemory there = memory.Of(node == nodes.end() ? NodeView{} : *node);
      const uint64_t has = node == nodes.end() ? 0 : node->memory_bytes, resident = there(p.layers.first, p.layers.second);
      const uint64_t needs = has > 0 ? there.Within(has, p.layers.first, p.layers.second) : resident;
      out.stages.push_back({p.layers, p.node, needs, has, has > 0 && resident > has});
    }
  }
  const uint64_t output = PlanOutput(*demand.plan, demand.shard_bytes).total_size;
  uint64_t boundaries = out.stages.size() - 1;
  for (const PlannedStage& s : out.stages) boundaries += s.streamed ? s.layers.second - s.layers.first - 1 : 0;   // at most: groups of one layer
  const uint64_t cuts = boundaries * demand.samples * static_cast<uint64_t>(demand.seq_len) * demand.plan->hidden_size * 2;
  for (const UnitPlan& unit : demand.plan->units) {
    for (const TensorPlan& t : unit.tensors) out.bytes_read += t.bytes;
  }
  out.bytes_read += output;                 // packs, by the merge
  out.bytes_written = 2 * output + cuts;    // packs and the result
  for (size_t i = 1; i < out.stages.size(); ++i) {
    if (out.stages[i].node != out.stages[i - 1].node) out.network_bytes += demand.samples * static_cast<uint64_t>(demand.seq_len) * demand.plan->hidden_size * 2;
  }
  out.seconds = Estimate(demand, out, nodes);
  return out;
}

std::string RenderPlan(const JobPlan& plan, uint32_t samples, uint32_t seq_len) {
  std::string text = "plan: " + std::to_string(plan.stages.size()) + (plan.stages.size() == 1 ? " stage, " : " stages, ") + std::to_string(samples) +
                     " samples of up to " + std::to_string(seq_len) + " tokens, " + FormatSize(plan.bytes_read) + " to read, " + FormatSize(plan.bytes_written) +
                     " to write, " + FormatSize(plan.network_bytes) + " between nodes" +
                     (plan.seconds ? ", roughly " + FormatDuration(*plan.seconds) + " by the speeds of the nodes" : "") + "\n";
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    const PlannedStage& s = plan.stages[i];
    text += "  stage " + std::to_string(i) + ": layers " + LayersOf(s.layers) + (s.node.empty() ? ", on a node still to come" : " on " + s.node) + (s.streamed ? ", streamed" : "") +
            ", at least " + FormatSize(s.memory_bytes) + (s.memory_has > 0 ? " of its " + FormatSize(s.memory_has) : " of memory") + "\n";
  }
  return text;
}

}  // namespace holdfast
