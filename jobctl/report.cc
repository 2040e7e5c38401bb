// SPDX-License-Identifier: Apache-2.0
#include "jobctl/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "export/shard/output_plan.h"
#include "jobctl/options.h"

namespace holdfast {
namespace {

// Sites whose input amax is not a finite positive number. None is what we want.
Status CollectOddSites(const RunState& state, Json* zero, Json* nan) {
  for (uint32_t layer = 0; layer < state.plan().layers; ++layer) {
    HOLDFAST_ASSIGN(const std::vector<float> amax, state.ReducedAmax(layer));
    const auto& sites = state.plan().units[layer].sites;
    for (size_t i = 0; i < sites.size() && i < amax.size(); ++i) {
      if (std::isnan(amax[i]) || std::isinf(amax[i])) nan->push_back(sites[i].module);
      else if (amax[i] == 0) zero->push_back(sites[i].module);
    }
  }
  return OkStatus();
}

std::string Text(const Json& j, const char* key) { return j.contains(key) && j[key].is_string() ? j[key].get<std::string>() : ""; }
uint64_t Number(const Json& j, const char* key) { return j.contains(key) && j[key].is_number_unsigned() ? j[key].get<uint64_t>() : 0; }

}  // namespace

Result<Json> BuildReport(const RunState& state, const std::map<std::string, uint64_t>& phase_ms, uint64_t rss_peak_bytes) {
  const JobSpec& job = state.job();
  Json phases = Json::object(), reasons = Json::object(), zero = Json::array(), nan = Json::array();
  for (const auto& [phase, ms] : phase_ms) phases[phase] = ms;
  uint64_t source_bytes = 0, sites = 0, restarts = 0;
  for (const SourceFile& f : job.weights) source_bytes += f.size;
  for (const UnitPlan& u : state.plan().units) sites += u.sites.size();
  for (const auto& [id, stage] : state.stages()) {
    for (size_t i = 1; i < stage.claims.size(); ++i) {   // the first claim is the start
      ++restarts;
      const std::string& reason = stage.claims[i].reason;
      reasons[reason] = reasons.value(reason, uint64_t{0}) + 1;
    }
  }
  HOLDFAST_TRY(CollectOddSites(state, &zero, &nan));
  const OutputPlan output = PlanOutput(state.plan(), job.shard_bytes);
  uint64_t tokens = 0;
  for (const auto& t : state.tokens()) tokens += t.size();
  return Json{{"job", job.uuid.Hex()}, {"out", job.out}, {"source", job.source}, {"run_dir", state.layout().root()}, {"recipe", job.recipe},
              {"numerics", job.numerics}, {"samples", job.samples}, {"tokens", tokens}, {"quantized_linears", sites},
              {"source_bytes", source_bytes}, {"output_bytes", output.total_size}, {"output_files", output.files.size()},
              {"phase_ms", std::move(phases)}, {"restarts", restarts}, {"restart_reasons", std::move(reasons)},
              {"zero_amax_sites", std::move(zero)}, {"nan_amax_sites", std::move(nan)}, {"rss_peak_bytes", rss_peak_bytes}};
}

std::string RenderReport(const Json& r) {
  std::string out = "\nResult      " + Text(r, "out") + "\n";
  out += "Sizes       " + FormatSize(Number(r, "source_bytes")) + " in, " + FormatSize(Number(r, "output_bytes")) + " out in " +
         std::to_string(Number(r, "output_files")) + " file(s), " + std::to_string(Number(r, "quantized_linears")) + " linears in NVFP4 (" + Text(r, "recipe") + ")\n";
  out += "Calibration " + std::to_string(Number(r, "samples")) + " samples, " + std::to_string(Number(r, "tokens")) + " tokens, " + Text(r, "numerics") + "\n";
  std::string times;
  uint64_t total = 0;
  for (const char* phase : {"check", "load", "calibrate", "evict", "merge"}) {
    const uint64_t ms = r.contains("phase_ms") ? Number(r["phase_ms"], phase) : 0;
    total += ms;
    char text[64];
    std::snprintf(text, sizeof text, "%s%s %.1f s", times.empty() ? "" : ", ", phase, static_cast<double>(ms) / 1000);
    times += text;
  }
  char whole[64];
  std::snprintf(whole, sizeof whole, " (%.1f s in this attempt)", static_cast<double>(total) / 1000);
  out += "Time        " + times + whole + "\n";
  std::string why;
  if (r.contains("restart_reasons")) {
    for (const auto& [reason, count] : r["restart_reasons"].items()) why += (why.empty() ? " (" : ", ") + reason + " x" + std::to_string(count.get<uint64_t>());
  }
  out += "Restarts    " + std::to_string(Number(r, "restarts")) + (why.empty() ? "" : why + ")") + "\n";
  const auto count = [&](const char* key) { return r.contains(key) && r[key].is_array() ? r[key].size() : 0; };
  out += "Sites       " + std::to_string(count("zero_amax_sites")) + " with zero amax, " + std::to_string(count("nan_amax_sites")) + " with NaN";
  if (count("zero_amax_sites") > 0) out += " (input_scale 1 was written for: " + r["zero_amax_sites"][0].get<std::string>() + (count("zero_amax_sites") > 1 ? ", ..." : "") + ")";
  out += "\n\nCheck it    jobctl verify " + Text(r, "out") + " --source " + Text(r, "source") + "\n";
  out += "Serve it    vllm serve " + Text(r, "out") + "\n";
  out += "            (the ledger " + Text(r, "run_dir") + " may be deleted once you are content)\n";
  return out;
}

}  // namespace holdfast
