// SPDX-License-Identifier: Apache-2.0
//
// The supported architectures as rows of a table: what config.json leaves unsaid, because the modeling code of the
// architecture fixes it (biases, defaults, which layers see a sliding window). A new architecture of the same shape is one row.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace holdfast {

enum class BiasRule : uint8_t {
  kNone,       // no linear has a bias, whatever config.json says
  kConfig,     // attention_bias: q, k, v and o; mlp_bias: gate, up and down
  kQkv,        // q, k and v always, nothing else
};

enum class WindowRule : uint8_t {
  kFull,           // every layer attends to everything before it
  kSlidingWindow,  // sliding_window in all layers, or in those that layer_types names
  kUseSliding,     // only with use_sliding_window, from layer max_window_layers on, or where layer_types says so
};

struct ArchitectureRow {
  const char* name;                 // of the class: "LlamaForCausalLM"
  const char* model_types[2];       // allowed values of model_type
  BiasRule bias;
  WindowRule window;
  uint64_t kv_heads_default;        // num_key_value_heads when absent; 0: as many as heads. An explicit null is always that.
  uint64_t max_positions_default;   // max_position_embeddings when absent
  uint64_t window_default;          // sliding_window when absent; an explicit null is "no window"
};

std::span<const ArchitectureRow> Architectures();
const ArchitectureRow* FindArchitecture(const std::string& name);   // null: not supported

}  // namespace holdfast
