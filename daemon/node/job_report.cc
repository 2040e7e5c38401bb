// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/job_report.h"

#include <cmath>

#include "export/shard/output_plan.h"

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

}  // namespace

Json OmittedJson(const RunState& state) {
  Json list = Json::array();
  for (const auto& [sample, omit] : state.omitted()) list.push_back({{"sample", sample}, {"stage", omit.stage.value}, {"why", omit.why}});
  return list;
}

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
  for (uint32_t s = 0; s < state.tokens().size(); ++s) tokens += state.Omitted(s) ? 0 : state.tokens()[s].size();
  Json report{{"job", job.uuid.Hex()}, {"out", job.out}, {"source", job.source}, {"run_dir", state.layout().root()}, {"recipe", job.recipe},
              {"numerics", job.numerics == kAnyNumerics ? EffectiveNumerics(state) : job.numerics}, {"samples", job.samples}, {"tokens", tokens}, {"quantized_linears", sites},
              {"source_bytes", source_bytes}, {"output_bytes", output.total_size}, {"output_files", output.files.size()},
              {"phase_ms", std::move(phases)}, {"restarts", restarts}, {"restart_reasons", std::move(reasons)},
              {"zero_amax_sites", std::move(zero)}, {"nan_amax_sites", std::move(nan)}, {"rss_peak_bytes", rss_peak_bytes}};
  if (!state.omitted().empty()) report["omitted"] = OmittedJson(state);
  return report;
}

}  // namespace holdfast
