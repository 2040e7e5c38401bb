// SPDX-License-Identifier: Apache-2.0
//
// The supported architectures as rows of a table: what config.json leaves unsaid, because the modeling code of the
// architecture fixes it (norms, biases, defaults, which layers see a sliding window). A new architecture of a shape that is there is one row.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "calib/model/decoder.h"

namespace holdfast {

enum class BiasRule : uint8_t {
  kNone,       // no linear has a bias, whatever config.json says
  kConfig,     // attention_bias: q, k, v and o; mlp_bias: gate, up and down
  kAttention,  // attention_bias: q, k, v and o; nothing else
  kQkv,        // q, k and v always, nothing else
};

enum class WindowRule : uint8_t {
  kFull,           // every layer attends to everything before it
  kSlidingWindow,  // sliding_window in all layers, or in those that layer_types names
  kUseSliding,     // only with use_sliding_window, from layer max_window_layers on, or where layer_types says so
  kPattern,        // sliding_window in all layers but each n-th, or in those that layer_types names
};

enum class RopeRule : uint8_t {
  kOne,            // the same in all layers
  kSlidingOnly,    // none where a layer attends to everything
  kTwo,            // one of its own for layers that slide: rope_local_base_freq, or rope_parameters by layer type
  kPhi,            // partial_rotary_factor, longrope (also as "su" and "yarn"), original_max_position_embeddings of the config
};

enum class QkNormRule : uint8_t { kNone, kAlways, kConfig };   // kConfig: use_qk_norm, with a weight for each head

struct ArchitectureRow {
  const char* name;                      // of the class: "LlamaForCausalLM"
  const char* model_types[2];            // allowed values of model_type
  BiasRule bias = BiasRule::kNone;
  WindowRule window = WindowRule::kFull;
  RopeRule rope = RopeRule::kOne;
  QkNormRule qk_norm = QkNormRule::kNone;
  NormKind norm = NormKind::kRms;
  BlockShape block = BlockShape::kSequential;
  bool fused = false;                    // qkv_proj and gate_up_proj
  bool interleaved = false;              // rotary pairs
  bool scaled_embedding = false;         // by sqrt(hidden)
  bool query_scalar = false;             // query_pre_attn_scalar instead of head_dim scales the scores
  bool attention_softcap = false;        // attn_logit_softcapping is read
  bool logit_scale = false;              // logit_scale is read
  bool head_dim_is_computed = false;     // hidden / heads, whatever config.json says
  bool excludes_embedding = true;
  const char* activation_key = "hidden_act";
  const char* activation_default = "silu";
  const char* eps_key = "rms_norm_eps";
  double eps_default = 1e-6;
  bool tied_default = false;
  double theta_default = 10000.0;
  uint64_t head_dim_default = 0;         // 0: hidden / heads
  uint64_t kv_heads_default = 0;         // num_key_value_heads when absent; 0: as many as heads. An explicit null is always that.
  uint64_t max_positions_default = 2048; // max_position_embeddings when absent
  uint64_t window_default = 0;           // sliding_window when absent; an explicit null is "no window"
  uint64_t pattern_default = 0;          // kPattern: each so many-th layer attends to everything
  const char* pattern_key = nullptr;     // kPattern: what config.json may call that
  double attention_softcap_default = 0, logit_softcap_default = 0;
};

std::span<const ArchitectureRow> Architectures();
const ArchitectureRow* FindArchitecture(const std::string& name);   // null: not supported

}  // namespace holdfast
