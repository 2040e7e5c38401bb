// SPDX-License-Identifier: Apache-2.0
//
// config.json -> decoder description -> plan of tensors and sites, and the memory that it would take.
#include "calib/model/decoder.h"

#include <cmath>

#include "calib/model/memory_plan.h"
#include "calib/model/rope.h"
#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

constexpr uint32_t kLayersMax = 64;  // plans of more are slow to make, and no different

void CheckSpec(const DecoderSpec& spec) {
  HOLDFAST_CHECK(spec.layers > 0 && spec.hidden > 0 && spec.vocab > 0 && spec.window.size() == spec.layers);
  HOLDFAST_CHECK(spec.heads > 0 && spec.kv_heads > 0 && spec.heads % spec.kv_heads == 0 && spec.head_dim % 2 == 0);
  HOLDFAST_CHECK(std::isfinite(spec.rope.theta) && std::isfinite(spec.rope.factor) && std::isfinite(spec.rope.attention_factor));
  HOLDFAST_CHECK(spec.norm_eps > 0 && spec.rope.factor > 0);
}

void CheckPlan(const DecoderSpec& spec) {
  for (const Recipe recipe : {Recipe::kNvfp4, Recipe::kNvfp4MlpOnly, Recipe::kNvfp4W4A16}) {
    auto plan = DescribeModel(spec, recipe);
    if (!plan.ok()) return fuzz::CheckRefusal(plan);
    HOLDFAST_CHECK(plan->layers == spec.layers && plan->units.size() == spec.layers + 2);
    plan->stages = {{StageId(0), 0, spec.layers}};
    fuzz::CheckJsonRoundTrip<Plan>(plan->ToJson());
    (void)PlanMemory(spec, *plan, 0, spec.layers, 512, MatmulDtype::kBf16);
  }
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  const auto json = ParseJson(AsText({data, size}), "config.json");
  if (!json.ok()) return 0;
  const auto spec = ParseDecoder(*json, "config.json");
  if (!spec.ok()) {
    fuzz::CheckRefusal(spec);
    return 0;
  }
  CheckSpec(*spec);
  if (spec->layers <= kLayersMax) CheckPlan(*spec);
  return 0;
}
