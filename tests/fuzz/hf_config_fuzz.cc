// SPDX-License-Identifier: Apache-2.0
//
// The JSON files beside the weights: rewriting a source's config.json, and what verify reads back from an output.
#include "export/format/hf_config.h"

#include "tests/fuzz/fuzz.h"

namespace holdfast {
namespace {

// What is written is JSON, says what was asked for, keeps every other field, and is not changed by writing it once more.
void CheckRewriting(const std::string& text) {
  const QuantDescription q{.input_activations = text.size() % 2 == 0, .exclude = {"lm_head", "model.layers.0*"}};
  const auto written = MakeConfigJson(text, q);
  if (!written.ok()) return fuzz::CheckRefusal(written);
  const auto parsed = ParseJson(*written, "written");
  HOLDFAST_CHECK(parsed.ok());
  const auto quant = ParseConfigQuant(*parsed, "written");
  HOLDFAST_CHECK(quant.ok() && quant->exclude == q.exclude && quant->group_size == 16);
  Json before = *ParseJson(text, "source"), after = *parsed;
  before.erase("quantization_config");
  after.erase("quantization_config");
  HOLDFAST_CHECK(before == after);
  HOLDFAST_CHECK(*MakeConfigJson(*written, q) == *written);
}

}  // namespace
}  // namespace holdfast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace holdfast;
  const std::string text(AsText({data, size}));
  CheckRewriting(text);
  const auto json = ParseJson(text, "config");
  if (!json.ok()) return 0;
  for (const auto& quant : {ParseConfigQuant(*json, "f"), ParseHfQuantConfig(*json, "f")}) {
    if (quant.ok()) (void)IsExcluded(quant->exclude, "model.layers.3.self_attn.q_proj");
    else fuzz::CheckRefusal(quant);
  }
  return 0;
}
