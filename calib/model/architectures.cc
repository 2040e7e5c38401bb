// SPDX-License-Identifier: Apache-2.0
#include "calib/model/architectures.h"

namespace holdfast {
namespace {

// Defaults are those of the transformers configuration classes (5.x).
constexpr ArchitectureRow kRows[] = {
    {"LlamaForCausalLM", {"llama", nullptr}, BiasRule::kConfig, WindowRule::kFull, 0, 2048, 0},
    {"MistralForCausalLM", {"mistral", "ministral"}, BiasRule::kNone, WindowRule::kSlidingWindow, 8, 131072, 4096},
    {"MinistralForCausalLM", {"ministral", "mistral"}, BiasRule::kNone, WindowRule::kSlidingWindow, 8, 131072, 4096},
    {"Qwen2ForCausalLM", {"qwen2", nullptr}, BiasRule::kQkv, WindowRule::kUseSliding, 32, 32768, 4096},
};

}  // namespace

std::span<const ArchitectureRow> Architectures() { return kRows; }

const ArchitectureRow* FindArchitecture(const std::string& name) {
  for (const ArchitectureRow& row : kRows) {
    if (name == row.name) return &row;
  }
  return nullptr;
}

}  // namespace holdfast
