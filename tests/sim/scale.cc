// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/scale.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "ledger/fold/run_state.h"
#include "tests/sim/cluster.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kComputeNs = 1300 * kMs, kRpcMinNs = 300'000, kRpcMaxNs = 1'200'000;

ClusterOptions OptionsFor(uint32_t nodes, uint32_t samples) {
  ClusterOptions o;
  o.shape = {.layers = nodes, .samples = samples, .cut = std::vector<uint32_t>(nodes, 1)};
  o.suspect_ns = 120 * kSecond;
  o.tenure_ns = 60 * kSecond;
  o.gather_ns = 3 * kSecond;
  for (uint32_t i = 0; i < nodes; ++i) {
    NodeOptions n;
    char name[8];
    std::snprintf(name, sizeof(name), "n%02u", i);
    n.name = name;
    n.compute_ns = kComputeNs;
    o.nodes.push_back(n);
  }
  return o;
}

struct Ran {
  uint64_t slots = 0, rpcs = 0, beats = 0, beats_at_coordinator = 0, virtual_ns = 0;
};

enum class Victim : uint8_t { kNobody, kLastStage, kCoordinator };

SimNode& NodeOf(Cluster& c, Victim victim) {
  for (auto& [name, node] : c.nodes) {
    if (victim == Victim::kCoordinator && node->coordinates) return *node;
  }
  return *c.nodes.rbegin()->second;
}

// The victim loses power after `after_ns`, and is back half a minute later.
Ran RunToTheEnd(Cluster& c, Victim victim, uint64_t after_ns) {
  Ran ran;
  c.server.on_name = [&ran](const std::string& op, const std::string& path) { ran.slots += op == "link" && path.ends_with(".seg"); };
  c.Submit();
  const uint64_t begin = c.world.now();
  for (auto& [name, node] : c.nodes) {
    node->kernel.rpc_ns_min = kRpcMinNs;
    node->kernel.rpc_ns_max = kRpcMaxNs;
    node->PowerOn();
  }
  if (victim != Victim::kNobody) {
    c.world.At(begin + after_ns, [&c, victim] {
      SimNode& node = NodeOf(c, victim);
      node.PowerOff();
      c.world.After(30 * kSecond, [&node] { node.PowerOn(); });
    });
  }
  while (!c.Done() && c.world.Step()) {
  }
  HOLDFAST_CHECK(c.Done());
  for (auto& [name, node] : c.nodes) {
    ran.rpcs += node->kernel.rpcs;
    ran.beats += node->beats_heard;
    if (node->coordinates) ran.beats_at_coordinator = node->beats_heard;
  }
  ran.virtual_ns = c.world.now() - begin;
  return ran;
}

void MeasureFold(Cluster& c, ScaleRow* row) {
  for (auto& [name, n] : c.nodes) n->PowerOff();
  SimNode& node = *c.nodes.begin()->second;
  const uint64_t rpcs = node.kernel.rpcs, from = c.world.now();
  uint64_t to = 0;
  const RealClock clock;
  const uint64_t real = clock.MonotonicNs();
  bool ended = false;
  const auto reader = c.world.Spawn("reader", [&](Process& p) {
    ProcessFiles files(node, p);
    RunState state(files.fs(), RunLayout(kRunDir));
    HOLDFAST_CHECK(state.Refresh().ok());
    to = c.world.now();
  }, [&] { ended = true; });
  while (!ended && c.world.Step()) {
  }
  row->fold_rpcs = static_cast<double>(node.kernel.rpcs - rpcs);
  row->fold_seconds = static_cast<double>(to - from) / 1e9;
  row->fold_real_seconds = static_cast<double>(clock.MonotonicNs() - real) / 1e9;
}

}  // namespace

double LostSeconds(uint32_t nodes, uint32_t samples, Victim victim, const Ran& calm) {
  Cluster c(OptionsFor(nodes, samples));
  const Ran hurt = RunToTheEnd(c, victim, calm.virtual_ns / 2);
  return (static_cast<double>(hurt.virtual_ns) - static_cast<double>(calm.virtual_ns)) / 1e9;
}

ScaleRow MeasureScale(uint32_t nodes, uint32_t samples, Deaths deaths) {
  ScaleRow row{.nodes = nodes, .stages = nodes, .samples = samples};
  const double cells = static_cast<double>(row.cells());
  Ran calm;
  {
    Cluster c(OptionsFor(nodes, samples));
    calm = RunToTheEnd(c, Victim::kNobody, 0);
    MeasureFold(c, &row);
  }
  row.commits_a_cell = static_cast<double>(calm.slots) / cells;
  row.rpcs_a_cell = static_cast<double>(calm.rpcs) / cells;
  const double seconds = static_cast<double>(calm.virtual_ns) / 1e9;
  row.beats_a_second = static_cast<double>(calm.beats) / seconds;
  row.beats_at_coordinator_a_second = static_cast<double>(calm.beats_at_coordinator) / seconds;
  row.hours = seconds / 3600;
  if (deaths == Deaths::kMeasured) {
    row.lost_seconds = LostSeconds(nodes, samples, Victim::kLastStage, calm);
    row.lost_with_coordinator_seconds = LostSeconds(nodes, samples, Victim::kCoordinator, calm);
  }
  return row;
}

std::string ScaleHeader() {
  return "| nodes = stages | samples | cells | commits a cell | RPCs a cell | beats a second at the coordinator | in all | fold at start: RPCs | s | real s | run, h | lost by a death, s | by the coordinator's |\n"
         "|---|---|---|---|---|---|---|---|---|---|---|---|---|";
}

std::string ScaleText(const ScaleRow& r) {
  char line[256];
  std::snprintf(line, sizeof(line), "| %u | %u | %llu | %.2f | %.0f | %.0f | %.0f | %.0f | %.1f | %.2f | %.2f |", r.nodes, r.samples,
                static_cast<unsigned long long>(r.cells()), r.commits_a_cell, r.rpcs_a_cell, r.beats_at_coordinator_a_second, r.beats_a_second, r.fold_rpcs,
                r.fold_seconds, r.fold_real_seconds, r.hours);
  const auto seconds = [](const std::optional<double>& s) { return s ? " " + std::to_string(std::lround(*s)) + " |" : std::string(" - |"); };
  return line + seconds(r.lost_seconds) + seconds(r.lost_with_coordinator_seconds);
}

std::string ScaleSvg(const std::vector<ScaleRow>& rows) {
  constexpr double kWidth = 640, kHeight = 400, kLeft = 70, kBottom = 340, kTop = 30, kDecade = 75;
  const auto x = [](double nodes) { return kLeft + 90 * std::log2(nodes); };
  const auto y = [](double value) { return kBottom - kDecade * std::log10(std::max(value, 1.0)); };
  char text[256];
  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 400\" font-family=\"sans-serif\" font-size=\"12\">\n"
                    "<!-- SPDX-License-Identifier: Apache-2.0 -->\n<rect width=\"640\" height=\"400\" fill=\"white\"/>\n";
  for (int decade = 0; decade <= 4; ++decade) {
    const double at = kBottom - kDecade * decade;
    std::snprintf(text, sizeof(text), "<line x1=\"%.0f\" y1=\"%.0f\" x2=\"%.0f\" y2=\"%.0f\" stroke=\"#ddd\"/><text x=\"20\" y=\"%.0f\">%.0f</text>\n", kLeft, at, kWidth - 20, at, at + 4,
                  std::pow(10, decade));
    svg += text;
  }
  for (int power = 0; power <= 6; ++power) {
    std::snprintf(text, sizeof(text), "<text x=\"%.0f\" y=\"%.0f\">%d</text>\n", x(1 << power) - 4, kBottom + 18, 1 << power);
    svg += text;
  }
  const auto curve = [&](const char* name, const char* colour, double label, double (*value)(const ScaleRow&)) {
    std::string points;
    for (const ScaleRow& r : rows) {
      std::snprintf(text, sizeof(text), "%.1f,%.1f ", x(r.nodes), y(value(r)));
      points += text;
    }
    svg += std::string("<polyline fill=\"none\" stroke=\"") + colour + "\" stroke-width=\"2\" points=\"" + points + "\"/>\n";
    std::snprintf(text, sizeof(text), "<text x=\"%.0f\" y=\"%.0f\" fill=\"%s\">%s</text>\n", kLeft + 10, kTop + label, colour, name);
    svg += text;
  };
  curve("RPCs a cell", "#c0392b", 0, [](const ScaleRow& r) { return r.rpcs_a_cell; });
  curve("beats a second at the coordinator", "#2471a3", 16, [](const ScaleRow& r) { return r.beats_at_coordinator_a_second; });
  curve("beats a second in all", "#7d3c98", 32, [](const ScaleRow& r) { return r.beats_a_second; });
  curve("fold at start, RPCs a cell", "#1e8449", 48, [](const ScaleRow& r) { return r.fold_rpcs / static_cast<double>(r.cells()); });
  std::snprintf(text, sizeof(text), "<text x=\"%.0f\" y=\"%.0f\">nodes (one stage each)</text>\n</svg>\n", kWidth / 2 - 60, kHeight - 15);
  return svg + text;
}

}  // namespace holdfast::sim
