// SPDX-License-Identifier: Apache-2.0
//
// Matmuls go through torch (oneDNN multiplies bf16 at the speed of the machine, whatever the layout); everything between them is ours,
// because torch's elementwise operations would cost as much as the matmuls. Buffers are allocated once per sample and reused by all
// layers. Attention runs in blocks of queries, so that only keys up to the end of the block are multiplied, and the query heads that
// share a key head are stacked into one matrix.
#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "calib/model/memory_plan.h"
#include "calib/model/rope.h"
#include "calib/runner/device_session.h"
#include "calib/runner/forward.h"
#include "calib/runner/kernels.h"

namespace holdfast {
namespace {

constexpr int64_t kRowsPerBlock = kAttentionRows, kQueryBlockMin = kAttentionBlockMin;

uint16_t* Raw(const at::Tensor& t) { return static_cast<uint16_t*>(t.data_ptr()); }
at::Tensor Bf16(int64_t rows, int64_t cols) { return at::empty({rows, cols}, at::kBFloat16); }

// One sample on its way through the range.
class Pass {
 public:
  Pass(const Range& range, const ForwardInput& input)
      : range_(range), spec_(range.spec), tokens_(static_cast<int64_t>(input.tokens)), hidden_(spec_.hidden), head_dim_(spec_.head_dim),
        heads_(spec_.heads), kv_heads_(spec_.kv_heads), group_(heads_ / kv_heads_), inner_(spec_.intermediate) {
    const int64_t width = (heads_ + 2 * kv_heads_) * head_dim_;
    block_ = std::min(tokens_, std::max<int64_t>(1, kRowsPerBlock / group_ / kQueryBlockMin) * kQueryBlockMin);
    x_ = Bf16(tokens_, hidden_);
    normed_ = Bf16(tokens_, hidden_);
    qkv_ = Bf16(tokens_, width);
    query_ = Bf16(heads_ * tokens_, head_dim_);
    key_ = Bf16(kv_heads_ * tokens_, head_dim_);
    scores_ = at::empty({group_ * block_ * tokens_}, at::kBFloat16);
    mixed_ = Bf16(group_ * block_, head_dim_);
    attention_ = Bf16(tokens_, heads_ * head_dim_);
    delta_ = Bf16(tokens_, hidden_);
    gate_up_ = Bf16(tokens_, 2 * inner_);
    activated_ = Bf16(tokens_, inner_);
    if (range.matmul == MatmulDtype::kF32) AllocateF32();
    rope_ = MakeRopeTable(spec_.rope, spec_.max_positions, input.tokens);
    result_.amax.assign(range.sites, 0.0f);
    Enter(input);
  }

  ForwardResult Run(bool want_hidden) {
    const size_t layers = range_.weights.layers.size();
    for (size_t i = 0; i < layers; ++i) {
      const LayerWeights& w = range_.weights.layers[i];
      Attention(i, w);
      Mlp(i, w);
      if (i + 1 == layers && !want_hidden) return std::move(result_);   // nobody reads what down_proj would give
      Linear(activated_, w.down, delta_);
      pending_ = true;
    }
    if (pending_) kernels::Add(Raw(x_), Raw(delta_), Count(x_));
    result_.hidden = range_.session->hidden.Take(Count(x_) * 2);
    std::memcpy(result_.hidden.data(), Raw(x_), Count(x_) * 2);
    return std::move(result_);
  }

 private:
  static size_t Count(const at::Tensor& t) { return static_cast<size_t>(t.numel()); }
  size_t Tokens() const { return static_cast<size_t>(tokens_); }

  void AllocateF32() {
    const int64_t in = std::max({hidden_, heads_ * head_dim_, inner_}), out = std::max({2 * inner_, hidden_, qkv_.size(1)});
    wide_in_ = at::empty({tokens_ * in}, at::kFloat);
    wide_out_ = at::empty({tokens_ * out}, at::kFloat);
  }

  void Enter(const ForwardInput& input) {
    if (input.ids == nullptr) {
      HOLDFAST_CHECK(input.hidden.size() == Count(x_) * 2);
      std::memcpy(Raw(x_), input.hidden.data(), input.hidden.size());
      return;
    }
    const uint16_t* table = Raw(range_.weights.embedding);
    const size_t n = spec_.hidden;
    for (size_t t = 0; t < input.ids->size(); ++t) {
      const int32_t id = (*input.ids)[t];
      HOLDFAST_CHECK(id >= 0 && static_cast<uint64_t>(id) < spec_.vocab);
      std::memcpy(Raw(x_) + t * n, table + static_cast<size_t>(id) * n, n * 2);
    }
  }

  void Observe(size_t layer, LinearInput input, uint16_t amax) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(amax) << 16);
    for (const uint32_t slot : range_.slots[layer][static_cast<size_t>(input)]) result_.amax[slot] = value;
  }

  // out = x * weight^T (+ bias), rounded to bf16 once.
  void Linear(const at::Tensor& x, const LayerWeights::Linear& linear, at::Tensor& out) {
    if (range_.matmul == MatmulDtype::kBf16) return Product(x, linear.weight.t(), linear.bias, out);
    at::Tensor in = Widen(x, wide_in_);
    at::Tensor wide = wide_out_.narrow(0, 0, out.numel()).view(out.sizes());
    Product(in, linear.weight.t(), linear.bias, wide);
    kernels::ToBf16(static_cast<const float*>(wide.data_ptr()), Count(out), Raw(out));
  }
  static void Product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias, at::Tensor& out) {
    if (bias.defined()) at::addmm_out(out, bias, a, b);
    else at::mm_out(out, a, b);
  }
  static at::Tensor Widen(const at::Tensor& x, const at::Tensor& buffer) {
    at::Tensor wide = buffer.narrow(0, 0, x.numel()).view(x.sizes());
    kernels::ToF32(Raw(x), Count(x), static_cast<float*>(wide.data_ptr()));
    return wide;
  }

  uint16_t Norm(const at::Tensor& weight) {
    const uint16_t* delta = pending_ ? Raw(delta_) : nullptr;
    pending_ = false;
    return kernels::RmsNorm(Raw(x_), delta, Raw(weight), static_cast<float>(spec_.norm_eps), Tokens(), spec_.hidden, Raw(normed_));
  }

  void Attention(size_t layer, const LayerWeights& w) {
    Observe(layer, LinearInput::kAttention, Norm(w.input_norm));
    Linear(normed_, w.qkv, qkv_);
    RotateHeads();
    const uint64_t window = spec_.window[range_.first_layer + layer];
    for (int64_t kv = 0; kv < kv_heads_; ++kv) {
      for (int64_t begin = 0; begin < tokens_; begin += block_) AttendBlock(kv, begin, std::min(begin + block_, tokens_), window);
    }
    Observe(layer, LinearInput::kAttentionOut, kernels::Amax(Raw(attention_), Count(attention_)));
    Linear(attention_, w.o, delta_);
    pending_ = true;
  }

  // query_: for each key head, for each block of tokens, the heads of its group, contiguous: a block is one matrix.
  int64_t QueryRow(int64_t kv, int64_t begin, int64_t in_group, int64_t length) const {
    return kv * group_ * tokens_ + begin * group_ + in_group * length;
  }
  void RotateHeads() {
    const size_t stride = static_cast<size_t>(qkv_.size(1)), dim = spec_.head_dim, half = dim / 2;
    for (int64_t head = 0; head < heads_; ++head) {
      for (int64_t begin = 0; begin < tokens_; begin += block_) {
        const int64_t length = std::min(block_, tokens_ - begin);
        const size_t b = static_cast<size_t>(begin);
        const int64_t row = QueryRow(head / group_, begin, head % group_, length);
        kernels::Rotate(Raw(qkv_) + b * stride + static_cast<size_t>(head) * dim, stride, rope_.cos.data() + b * half,
                        rope_.sin.data() + b * half, static_cast<size_t>(length), dim, Raw(query_) + static_cast<size_t>(row) * dim);
      }
    }
    for (int64_t kv = 0; kv < kv_heads_; ++kv) {
      kernels::Rotate(Raw(qkv_) + static_cast<size_t>(heads_ + kv) * dim, stride, rope_.cos.data(), rope_.sin.data(), Tokens(), dim,
                      Raw(key_) + static_cast<size_t>(kv * tokens_) * dim);
    }
  }

  void AttendBlock(int64_t kv, int64_t begin, int64_t end, uint64_t window) {
    const int64_t length = end - begin, rows = group_ * length;
    const int64_t low = window == 0 ? 0 : std::max<int64_t>(0, begin + 1 - static_cast<int64_t>(std::min<uint64_t>(window, 1ull << 40)));
    const int64_t keys = end - low;
    const at::Tensor q = query_.narrow(0, QueryRow(kv, begin, 0, length), rows);
    const at::Tensor k = key_.narrow(0, kv * tokens_ + low, keys);
    const at::Tensor v = qkv_.narrow(0, low, keys).narrow(1, (heads_ + kv_heads_ + kv) * head_dim_, head_dim_);
    at::Tensor scores = scores_.narrow(0, 0, rows * keys).view({rows, keys});
    at::Tensor mixed = mixed_.narrow(0, 0, rows);
    Multiply(q, k.t(), scores);
    kernels::CausalSoftmax(Raw(scores), {.rows = static_cast<size_t>(rows), .n = static_cast<size_t>(keys),
                                         .tokens = static_cast<size_t>(length), .diagonal = static_cast<size_t>(begin - low),
                                         .window = static_cast<size_t>(window), .scale = scale_});
    Multiply(scores, v, mixed);
    Scatter(kv, begin, length);
  }
  void Multiply(const at::Tensor& a, const at::Tensor& b, at::Tensor& out) {
    if (range_.matmul == MatmulDtype::kBf16) {
      at::mm_out(out, a, b);
    } else {
      out.copy_(at::mm(a.to(at::kFloat), b.to(at::kFloat)));
    }
  }
  void Scatter(int64_t kv, int64_t begin, int64_t length) {
    const size_t dim = spec_.head_dim, width = static_cast<size_t>(heads_) * dim;
    const uint16_t* from = Raw(mixed_);
    for (int64_t g = 0; g < group_; ++g) {
      uint16_t* to = Raw(attention_) + static_cast<size_t>(begin) * width + static_cast<size_t>(kv * group_ + g) * dim;
      for (int64_t t = 0; t < length; ++t, from += dim, to += width) std::memcpy(to, from, dim * 2);
    }
  }

  void Mlp(size_t layer, const LayerWeights& w) {
    Observe(layer, LinearInput::kMlp, Norm(w.mlp_norm));
    Linear(normed_, w.gate_up, gate_up_);
    Observe(layer, LinearInput::kMlpOut, Activate());
  }
  uint16_t Activate() {
    using Activation = DecoderSpec::Activation;
    const size_t n = spec_.intermediate;
    if (spec_.activation == Activation::kSilu) return kernels::SiluMul(Raw(gate_up_), Tokens(), n, Raw(activated_));
    const at::Tensor gate = gate_up_.narrow(1, 0, inner_).contiguous();
    const at::Tensor a = at::gelu(gate, spec_.activation == Activation::kGelu ? "none" : "tanh");
    return kernels::MulUp(Raw(a), Raw(gate_up_), Tokens(), n, Raw(activated_));
  }

  const Range& range_;
  const DecoderSpec& spec_;
  const int64_t tokens_, hidden_, head_dim_, heads_, kv_heads_, group_, inner_;
  const float scale_ = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim_)));
  int64_t block_ = 0;
  at::Tensor x_;          // the residual stream; the last linear's result waits in delta_ while pending_
  at::Tensor normed_, qkv_, query_, key_, scores_, mixed_, attention_, delta_, gate_up_, activated_;
  at::Tensor wide_in_, wide_out_;   // f32 matmuls only
  bool pending_ = false;
  RopeTable rope_;
  ForwardResult result_;
};

}  // namespace

ForwardResult CpuForward(const Range& range, const ForwardInput& input) { return Pass(range, input).Run(input.want_hidden); }

}  // namespace holdfast
