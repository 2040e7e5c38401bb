// SPDX-License-Identifier: Apache-2.0
#include "tests/calib/golden_model.h"

#include <cmath>
#include <limits>

namespace holdfast {
namespace {

Json ReadJson(FileSystem& fs, const std::string& path) {
  const Bytes bytes = Must(fs.ReadFile(path));
  return Must(ParseJson(AsText(bytes), path));
}

}  // namespace

std::vector<std::string> GoldenModel::Names() {
  PosixFileSystem fs;
  std::vector<std::string> names;
  for (const std::string& name : Must(fs.List(Root()))) {
    if (name.find('.') == std::string::npos) names.push_back(name);   // a folder
  }
  return names;
}

GoldenModel::GoldenModel(const std::string& name, const char* folder) : dir(Root(folder) + name) {
  config = ReadJson(fs, dir + "/config.json");
  spec = Must(ParseDecoder(config, dir + "/config.json"));
  source = Must(SourceModel::Open(fs, dir));
  plan = Must(BindModel(spec, Recipe::kNvfp4, *source));
  const Json tokens = ReadJson(fs, dir + "/tokens.json"), expected = ReadJson(fs, dir + "/expected.json");
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Json& e = expected.at("samples").at(i);
    GoldenSample s;
    s.ids = tokens[i].get<std::vector<int32_t>>();
    s.amax_bf16 = e.at("amax_bf16").get<std::map<std::string, float>>();
    s.amax_f32 = e.at("amax_f32").get<std::map<std::string, float>>();
    if (e.at("inv_freq").is_array()) s.inv_freq = e.at("inv_freq").get<std::vector<float>>();
    s.rms_bf16 = e.at("hidden_bf16").at("rms").get<double>();
    s.rms_f32 = e.at("hidden_f32").at("rms").get<double>();
    samples.push_back(std::move(s));
  }
}

std::unique_ptr<LayerRangeRunner> LoadRunner(const GoldenModel& m, const DecoderSpec& spec, uint32_t first, uint32_t last,
                                             const std::string& device) {
  RunnerOptions options;
  options.first_layer = first;
  options.last_layer = last;
  options.device = device;
  return Must(LayerRangeRunner::Load(*m.source, spec, m.plan, options, nullptr));
}

double WorstDifference(const Plan& plan, const std::vector<float>& amax, const std::map<std::string, float>& expected) {
  double worst = 0;
  const std::vector<const SitePlan*> sites = plan.SitesOf(0, plan.layers);
  EXPECT_EQ(sites.size(), amax.size());
  EXPECT_EQ(sites.size(), expected.size());
  for (size_t i = 0; i < sites.size(); ++i) {
    const double difference = std::abs(amax[i] / expected.at(sites[i]->module) - 1.0);
    worst = std::max(worst, std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference);
  }
  return worst;
}

}  // namespace holdfast
