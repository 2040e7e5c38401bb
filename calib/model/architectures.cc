// SPDX-License-Identifier: Apache-2.0
#include "calib/model/architectures.h"

namespace holdfast {
namespace {

// Defaults are those of the transformers configuration classes (5.x).
constexpr ArchitectureRow kRows[] = {
    {.name = "LlamaForCausalLM", .model_types = {"llama", nullptr}, .bias = BiasRule::kConfig},
    {.name = "MistralForCausalLM", .model_types = {"mistral", "ministral"}, .window = WindowRule::kSlidingWindow, .kv_heads_default = 8,
     .max_positions_default = 131072, .window_default = 4096},
    {.name = "MinistralForCausalLM", .model_types = {"ministral", "mistral"}, .window = WindowRule::kSlidingWindow, .kv_heads_default = 8,
     .max_positions_default = 131072, .window_default = 4096},
    {.name = "Qwen2ForCausalLM", .model_types = {"qwen2", nullptr}, .bias = BiasRule::kQkv, .window = WindowRule::kUseSliding, .kv_heads_default = 32,
     .max_positions_default = 32768, .window_default = 4096},
    {.name = "Qwen3ForCausalLM", .model_types = {"qwen3", nullptr}, .bias = BiasRule::kAttention, .window = WindowRule::kUseSliding,
     .qk_norm = QkNormRule::kAlways, .head_dim_default = 128, .kv_heads_default = 32, .max_positions_default = 32768, .window_default = 4096},
    {.name = "Phi3ForCausalLM", .model_types = {"phi3", nullptr}, .window = WindowRule::kSlidingWindow, .rope = RopeRule::kPhi, .fused = true,
     .eps_default = 1e-5, .max_positions_default = 4096},
    {.name = "CohereForCausalLM", .model_types = {"cohere", nullptr}, .bias = BiasRule::kAttention, .qk_norm = QkNormRule::kConfig,
     .norm = NormKind::kLayer, .block = BlockShape::kParallel, .interleaved = true, .logit_scale = true, .eps_key = "layer_norm_eps",
     .eps_default = 1e-5, .tied_default = true, .theta_default = 500000.0, .max_positions_default = 8192},
    {.name = "Cohere2ForCausalLM", .model_types = {"cohere2", nullptr}, .bias = BiasRule::kAttention, .window = WindowRule::kPattern,
     .rope = RopeRule::kSlidingOnly, .norm = NormKind::kLayer, .block = BlockShape::kParallel, .interleaved = true, .logit_scale = true,
     .head_dim_is_computed = true, .eps_key = "layer_norm_eps", .eps_default = 1e-5, .tied_default = true, .max_positions_default = 8192,
     .window_default = 4096, .pattern_default = 4, .pattern_key = "sliding_window_pattern"},
    {.name = "Gemma2ForCausalLM", .model_types = {"gemma2", nullptr}, .bias = BiasRule::kAttention, .window = WindowRule::kPattern,
     .norm = NormKind::kRmsPlusOne, .block = BlockShape::kSandwich, .scaled_embedding = true, .query_scalar = true, .attention_softcap = true,
     .excludes_embedding = false, .activation_key = "hidden_activation", .activation_default = "gelu_pytorch_tanh", .tied_default = true,
     .head_dim_default = 256, .kv_heads_default = 4, .max_positions_default = 8192, .window_default = 4096, .pattern_default = 2,
     .attention_softcap_default = 50.0, .logit_softcap_default = 30.0},
    {.name = "Gemma3ForCausalLM", .model_types = {"gemma3_text", nullptr}, .bias = BiasRule::kAttention, .window = WindowRule::kPattern,
     .rope = RopeRule::kTwo, .qk_norm = QkNormRule::kAlways, .norm = NormKind::kRmsPlusOne, .block = BlockShape::kSandwich,
     .scaled_embedding = true, .query_scalar = true, .excludes_embedding = false, .activation_key = "hidden_activation",
     .activation_default = "gelu_pytorch_tanh", .tied_default = true, .theta_default = 1e6, .head_dim_default = 256, .kv_heads_default = 4,
     .max_positions_default = 131072, .window_default = 4096, .pattern_default = 6, .pattern_key = "sliding_window_pattern"},
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
