// SPDX-License-Identifier: Apache-2.0
//
// The golden forward passes of tests/golden/forward and tests/golden/architectures: model directory, tokens and what transformers observed.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "calib/model/decoder.h"
#include "calib/runner/runner.h"

namespace holdfast {

struct GoldenSample {
  std::vector<int32_t> ids;
  std::map<std::string, float> amax_bf16, amax_f32;   // by module
  std::vector<float> inv_freq;
  double rms_bf16 = 0, rms_f32 = 0;                   // of the hidden state behind the last layer
};

class GoldenModel {
 public:
  explicit GoldenModel(const std::string& name, const char* folder = "forward");
  static std::string Root(const std::string& folder = "forward") { return std::string(HOLDFAST_SOURCE_DIR) + "/tests/golden/" + folder + "/"; }
  static std::vector<std::string> Names();

  PosixFileSystem fs;
  std::string dir;
  Json config;
  DecoderSpec spec;
  std::unique_ptr<SourceModel> source;
  Plan plan;
  std::vector<GoldenSample> samples;
};

// The value of a Result, or a test failure and the end of the program: for setting up.
template <class T>
T Must(Result<T> r) {
  if (!r.ok()) {
    ADD_FAILURE() << r.error().message;
    std::abort();
  }
  return std::move(r).value();
}

std::unique_ptr<LayerRangeRunner> LoadRunner(const GoldenModel& m, const DecoderSpec& spec, uint32_t first, uint32_t last,
                                             const std::string& device = "cpu");

// Largest relative difference between `amax` (of all layers) and `expected`; a NaN counts as infinite.
double WorstDifference(const Plan& plan, const std::vector<float>& amax, const std::map<std::string, float>& expected);

}  // namespace holdfast
