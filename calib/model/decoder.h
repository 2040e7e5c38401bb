// SPDX-License-Identifier: Apache-2.0
//
// A decoder described by data: what config.json of a supported architecture means for tensors, quantizer sites and the forward pass.
// Pure C++, no torch: jobctl plans with it, verify judges with it, the runner computes with it. A further architecture is a
// further row of data (names, kinds, flags), not a further copy of code.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "export/format/safetensors.h"
#include "ledger/base/json.h"
#include "ledger/records/records.h"

namespace holdfast {

struct RopeSpec {
  enum class Kind : uint8_t { kDefault, kLinear, kDynamic, kYarn, kLlama3, kLongRope };
  Kind kind = Kind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;           // llama3
  double beta_fast = 32.0, beta_slow = 1.0;                       // yarn
  double attention_factor = 1.0;                                  // multiplies cos and sin (yarn; 1 otherwise), resolved
                                                                  // from mscale, mscale_all_dim and factor where not given
  bool truncate = true;                                           // yarn
  uint64_t original_max_positions = 0;
  std::vector<double> short_factors, long_factors;                // longrope: of each pair, up to the original positions and beyond
  uint32_t dims = 0;                                              // of a head that are turned: the first ones; the others stay
  bool interleaved = false;                                       // pairs are (0, 1), (2, 3), ... and not (0, dims/2), ...; turned in f32
};

// y = x * rsqrt(mean(x^2) + eps), in f32; then kRms: w * bf16(y); kRmsPlusOne: bf16(y * (1 + w)); kLayer: x is centred first, bf16(y * w).
enum class NormKind : uint8_t { kRms, kRmsPlusOne, kLayer };
// Of queries and keys, over each head before rotary embedding: one weight for all heads, or one for each.
enum class QkNorm : uint8_t { kNone, kOne, kEach };
// x += attention(norm(x)), x += mlp(norm(x)) | the same with a norm behind each as well | x += attention(n) + mlp(n), n = norm(x)
enum class BlockShape : uint8_t { kSequential, kSandwich, kParallel };
// Which rotary embedding a layer has.
enum class RopeUse : uint8_t { kGlobal, kLocal, kNone };

struct DecoderSpec {
  std::string architecture;                // "LlamaForCausalLM"
  std::string model_type;
  uint64_t hidden = 0, intermediate = 0, vocab = 0, max_positions = 0;
  uint32_t layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  double norm_eps = 1e-6;
  enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh } activation = Activation::kSilu;
  bool qkv_bias = false, o_bias = false, mlp_bias = false, tied_embeddings = false;
  NormKind norm = NormKind::kRms;
  QkNorm qk_norm = QkNorm::kNone;
  BlockShape block = BlockShape::kSequential;
  bool fused_qkv = false, fused_gate_up = false;   // one matrix in the checkpoint, and one site
  double attention_scale = 0;              // of the scores
  double attention_softcap = 0, logit_softcap = 0;   // c * tanh(x / c); 0: none
  double logit_scale = 1, embedding_scale = 1;
  RopeSpec rope, local_rope;
  std::vector<uint64_t> window;            // per layer: 0 = full attention, else the sliding window in tokens
  std::vector<RopeUse> rope_of;            // per layer
  bool excludes_embedding = true;          // whether Model-Optimizer lists it
  DType dtype = DType::kBF16;              // of the checkpoint, as config.json says
};

// The tensor that a linear of a decoder layer reads. Linears of one layer with the same input form a set: they share
// weight_scale_2 and input_scale, whatever their names are.
enum class LinearInput : uint8_t { kAttention, kAttentionOut, kMlp, kMlpOut };

// What a linear is to the forward pass.
enum class LinearRole : uint8_t { kQ, kK, kV, kQkv, kO, kGate, kUp, kGateUp, kDown };

// One linear of a decoder layer, as data.
struct LinearSpec {
  std::string module;            // inside the layer: "self_attn.q_proj"
  LinearRole role = LinearRole::kQ;
  LinearInput input = LinearInput::kAttention;
  uint64_t rows = 0, cols = 0;   // [out, in]
  bool bias = false;
};

// The linears of a decoder layer (they are the same in every layer), in order of the forward pass and of the checkpoint's modules:
// q, k, v, o, gate, up, down; or qkv, o, gate_up, down.
std::vector<LinearSpec> LayerLinears(const DecoderSpec& spec);

// A norm of a decoder layer: its tensor's name inside the layer, and its shape.
enum class NormRole : uint8_t { kAttention, kAfterAttention, kMlp, kAfterMlp, kQuery, kKey };
struct NormTensor {
  std::string name;
  NormRole role = NormRole::kAttention;
  std::vector<uint64_t> shape;
};
std::vector<NormTensor> LayerNorms(const DecoderSpec& spec);

// Whether it is a block of Llama's: norms of kRms before attention and MLP and nowhere else, everything turned in halves by one rotary embedding, no
// caps and scales, nothing fused. The fused kernels of CPU and GPU compute those; the others go operation by operation.
bool IsPlain(const DecoderSpec& spec);

// Names of tensors: "model.layers.3.self_attn.q_proj", "model.embed_tokens.weight", ...
std::string LayerPrefix(uint32_t layer);   // "model.layers.3."
inline constexpr const char* kInputNormName = "input_layernorm.weight";            // inside the layer
inline constexpr const char* kMlpNormName = "post_attention_layernorm.weight";     // inside the layer; of a plain block
inline constexpr const char* kEmbeddingName = "model.embed_tokens.weight";
inline constexpr const char* kFinalNormName = "model.norm.weight";
inline constexpr const char* kHeadName = "lm_head.weight";

// Architectures known here, for messages and docs.
std::vector<std::string> SupportedArchitectures();

// Errors: kUnsupported (architecture: lists those we know; rope type; activation; already quantized source), kInvalidArgument
// (a field missing, of the wrong type, out of bounds or in conflict, named). Both styles of config.json are read: hub
// (rope_theta, rope_scaling, torch_dtype) and transformers 5 (rope_parameters, dtype, layer_types).
Result<DecoderSpec> ParseDecoder(const Json& config, const std::string& what);

enum class Recipe : uint8_t { kNvfp4, kNvfp4MlpOnly, kNvfp4W4A16 };
Result<Recipe> ParseRecipe(const std::string& name);   // lists the names on error

// The model as units (layers, embed, head), sites and sets, and the exclude list, without looking at weights: tensors carry names
// and shapes, file/offset/dtype unset. plan.stages is left empty.
Result<Plan> DescribeModel(const DecoderSpec& spec, Recipe recipe);

// DescribeModel bound to a source checkpoint: every tensor found, with its dtype, file and offset; shapes agree with the config.
// Errors (kInvalidArgument): a tensor missing, of a wrong shape or dtype (bf16, f16, f32 are read), one that nobody asked for (named;
// rotary inv_freq buffers and a tied lm_head copy are let pass), an input dimension of a quantized linear that is not a multiple of 16.
Result<Plan> BindModel(const DecoderSpec& spec, Recipe recipe, const SourceModel& source);

// Cuts `plan.layers` into stages. `shard_layers` (e.g. 14,14,2) must add up; else `stages` equal parts (by layers).
Result<std::vector<std::pair<uint32_t, uint32_t>>> CutStages(uint32_t layers, const std::vector<uint32_t>& shard_layers, uint32_t stages);

}  // namespace holdfast
