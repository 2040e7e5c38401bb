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
  uint64_t slots = 0, rpcs = 0, messages = 0, virtual_ns = 0;
};

Ran RunToTheEnd(Cluster& c, uint64_t kill_at_ns) {
  Ran ran;
  c.server.on_name = [&ran](const std::string& op, const std::string& path) { ran.slots += op == "link" && path.ends_with(".seg"); };
  c.Submit();
  const uint64_t begin = c.world.now();
  for (auto& [name, node] : c.nodes) {
    node->kernel.rpc_ns_min = kRpcMinNs;
    node->kernel.rpc_ns_max = kRpcMaxNs;
    node->PowerOn();
  }
  if (kill_at_ns != 0) {
    SimNode& victim = *c.nodes.rbegin()->second;
    c.world.At(begin + kill_at_ns, [&victim] { victim.PowerOff(); });
    c.world.At(begin + kill_at_ns + 30 * kSecond, [&victim] { victim.PowerOn(); });
  }
  while (!c.Done() && c.world.Step()) {
  }
  HOLDFAST_CHECK(c.Done());
  for (auto& [name, node] : c.nodes) ran.rpcs += node->kernel.rpcs;
  ran.messages = c.messages;
  ran.virtual_ns = c.world.now() - begin;
  return ran;
}

void MeasureFold(Cluster& c, ScaleRow* row) {
  SimNode& node = *c.nodes.begin()->second;
  const uint64_t rpcs = node.kernel.rpcs, from = c.world.now();
  uint64_t to = 0;
  const RealClock clock;
  const uint64_t real = clock.MonotonicNs();
  bool ended = false;
  for (auto& [name, n] : c.nodes) {
    if (n.get() != &node) n->PowerOff();
  }
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

ScaleRow MeasureScale(uint32_t nodes, uint32_t samples, Death death) {
  ScaleRow row{.nodes = nodes, .stages = nodes, .samples = samples};
  const double cells = static_cast<double>(row.cells());
  Ran calm;
  {
    Cluster c(OptionsFor(nodes, samples));
    calm = RunToTheEnd(c, 0);
    MeasureFold(c, &row);
  }
  row.commits_a_cell = static_cast<double>(calm.slots) / cells;
  row.rpcs_a_cell = static_cast<double>(calm.rpcs) / cells;
  row.messages_a_second = static_cast<double>(calm.messages) / (static_cast<double>(calm.virtual_ns) / 1e9);
  row.hours = static_cast<double>(calm.virtual_ns) / 3.6e12;
  if (death == Death::kOne && nodes > 1) {
    Cluster c(OptionsFor(nodes, samples));
    const Ran hurt = RunToTheEnd(c, calm.virtual_ns / 2);
    row.lost_seconds = (static_cast<double>(hurt.virtual_ns) - static_cast<double>(calm.virtual_ns)) / 1e9;
  }
  return row;
}

std::string ScaleHeader() {
  return "| nodes = stages | samples | cells | commits a cell | RPCs a cell | messages a second | fold at start: RPCs | s | real s | run, h | lost by a death, s |\n"
         "|---|---|---|---|---|---|---|---|---|---|---|";
}

std::string ScaleText(const ScaleRow& r) {
  char line[256];
  std::snprintf(line, sizeof(line), "| %u | %u | %llu | %.2f | %.0f | %.0f | %.0f | %.1f | %.2f | %.2f | %.0f |", r.nodes, r.samples,
                static_cast<unsigned long long>(r.cells()), r.commits_a_cell, r.rpcs_a_cell, r.messages_a_second, r.fold_rpcs, r.fold_seconds,
                r.fold_real_seconds, r.hours, r.lost_seconds);
  return line;
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
  curve("messages a second", "#2471a3", 16, [](const ScaleRow& r) { return r.messages_a_second; });
  curve("fold at start, RPCs a node", "#1e8449", 32, [](const ScaleRow& r) { return r.fold_rpcs / r.nodes; });
  std::snprintf(text, sizeof(text), "<text x=\"%.0f\" y=\"%.0f\">nodes (one stage each)</text>\n</svg>\n", kWidth / 2 - 60, kHeight - 15);
  return svg + text;
}

}  // namespace holdfast::sim
