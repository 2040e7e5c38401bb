// SPDX-License-Identifier: Apache-2.0
//
// The same pass as cpu_forward.cc in torch operations alone: what a GPU runs, and on a CPU the plain statement of what the fused kernels
// must compute. Observed maxima stay on the device until the sample is done, so that nothing waits for them.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "calib/model/rope.h"
#include "calib/runner/device_session.h"
#include "calib/runner/forward.h"

namespace holdfast {
namespace {

constexpr int64_t kQueryBlock = 1024;   // bounds the score matrix: heads x block x keys

class OpsPass {
 public:
  OpsPass(const Range& range, const ForwardInput& input)
      : range_(range), spec_(range.spec), tokens_(static_cast<int64_t>(input.tokens)), head_dim_(spec_.head_dim), heads_(spec_.heads),
        kv_heads_(spec_.kv_heads) {
    const RopeTable table = MakeRopeTable(spec_, input.tokens);
    cos_ = Upload(table.cos, {tokens_, head_dim_ / 2});
    sin_ = Upload(table.sin, {tokens_, head_dim_ / 2});
    if (input.ids == nullptr) {
      HOLDFAST_CHECK(input.hidden.size() == input.tokens * spec_.hidden * 2);
      x_ = Upload(input.hidden.data(), {tokens_, static_cast<int64_t>(spec_.hidden)});
    } else {
      at::Tensor ids = at::empty({tokens_}, at::kInt);
      std::memcpy(ids.data_ptr(), input.ids->data(), input.ids->size() * sizeof(int32_t));
      x_ = range.weights.embedding.index_select(0, ids.to(range.device));
    }
  }

  ForwardResult Run(bool want_hidden) {
    const size_t layers = range_.weights.layers.size();
    for (size_t i = 0; i < layers; ++i) {
      const LayerWeights& w = range_.weights.layers[i];
      x_ = x_ + Attention(i, w);
      const at::Tensor activated = Mlp(i, w);
      if (i + 1 == layers && !want_hidden) return Finish(want_hidden);
      x_ = x_ + Linear(activated, w.down);
    }
    return Finish(want_hidden);
  }

 private:
  at::Tensor Upload(const void* bits, at::IntArrayRef shape) {
    at::Tensor host = at::empty(shape, at::kBFloat16);
    std::memcpy(host.data_ptr(), bits, static_cast<size_t>(host.numel()) * 2);
    return host.to(range_.device);
  }
  at::Tensor Upload(const std::vector<uint16_t>& bits, at::IntArrayRef shape) { return Upload(bits.data(), shape); }

  void Observe(size_t layer, LinearInput input, const at::Tensor& x) {
    const std::vector<uint32_t>& slots = range_.slots[layer][static_cast<size_t>(input)];
    if (slots.empty()) return;
    seen_.push_back(at::amax(x.abs()));   // propagates NaN
    seen_slots_.push_back(&slots);
  }

  at::Tensor Linear(const at::Tensor& x, const LayerWeights::Linear& w) const {
    if (range_.matmul == MatmulDtype::kF32) return at::linear(x.to(at::kFloat), w.weight, w.bias).to(at::kBFloat16);
    return at::linear(x, w.weight, w.bias);
  }
  at::Tensor Matmul(const at::Tensor& a, const at::Tensor& b) const {
    if (range_.matmul == MatmulDtype::kF32) return at::matmul(a.to(at::kFloat), b.to(at::kFloat)).to(at::kBFloat16);
    return at::matmul(a, b);
  }

  at::Tensor Norm(const at::Tensor& weight) const {
    const at::Tensor wide = x_.to(at::kFloat);
    const at::Tensor scale = at::rsqrt(wide.pow(2).mean(-1, true) + spec_.norm_eps);
    return weight * (wide * scale).to(at::kBFloat16);
  }

  // x: [heads, tokens, head_dim]
  at::Tensor Rotate(const at::Tensor& x) const {
    const at::Tensor a = x.narrow(-1, 0, head_dim_ / 2), b = x.narrow(-1, head_dim_ / 2, head_dim_ / 2);
    return at::cat({a * cos_ - b * sin_, b * cos_ + a * sin_}, -1);
  }
  at::Tensor Heads(const at::Tensor& qkv, int64_t first, int64_t count) const {
    return qkv.narrow(1, first * head_dim_, count * head_dim_).view({tokens_, count, head_dim_}).transpose(0, 1);
  }

  at::Tensor Attention(size_t layer, const LayerWeights& w) {
    const at::Tensor normed = Norm(w.input_norm);
    Observe(layer, LinearInput::kAttention, normed);
    const at::Tensor qkv = Linear(normed, w.qkv);
    const int64_t group = heads_ / kv_heads_;
    // [kv_heads, group, tokens, head_dim] against [kv_heads, 1, tokens, head_dim]
    const at::Tensor q = Rotate(Heads(qkv, 0, heads_)).view({kv_heads_, group, tokens_, head_dim_});
    const at::Tensor k = Rotate(Heads(qkv, heads_, kv_heads_)).unsqueeze(1);
    const at::Tensor v = Heads(qkv, heads_ + kv_heads_, kv_heads_).unsqueeze(1);
    std::vector<at::Tensor> blocks;
    for (int64_t begin = 0; begin < tokens_; begin += kQueryBlock) {
      const int64_t end = std::min(begin + kQueryBlock, tokens_);
      blocks.push_back(AttendBlock(q, k, v, begin, end, spec_.window[range_.first_layer + layer]));
    }
    const at::Tensor mixed = at::cat(blocks, 2).view({heads_, tokens_, head_dim_});
    const at::Tensor attention = mixed.transpose(0, 1).reshape({tokens_, heads_ * head_dim_});
    Observe(layer, LinearInput::kAttentionOut, attention);
    return Linear(attention, w.o);
  }

  at::Tensor AttendBlock(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t begin, int64_t end, uint64_t window) const {
    const at::Tensor queries = q.narrow(2, begin, end - begin);
    const at::Tensor keys = k.narrow(2, 0, end), values = v.narrow(2, 0, end);
    at::Tensor scores = Matmul(queries, keys.transpose(-1, -2)) * scale_;
    scores = scores.masked_fill(Masked(begin, end, window), -std::numeric_limits<float>::infinity());
    const at::Tensor weights = at::softmax(scores, -1, at::kFloat).to(at::kBFloat16);
    return Matmul(weights, values);
  }
  at::Tensor Masked(int64_t begin, int64_t end, uint64_t window) const {
    const at::TensorOptions longs = at::TensorOptions().dtype(at::kLong).device(range_.device);
    const at::Tensor query = at::arange(begin, end, longs).unsqueeze(1), key = at::arange(0, end, longs).unsqueeze(0);
    const at::Tensor future = key > query;
    if (window == 0 || window >= static_cast<uint64_t>(end)) return future;
    return at::logical_or(future, key <= query - static_cast<int64_t>(window));
  }

  at::Tensor Mlp(size_t layer, const LayerWeights& w) {
    const at::Tensor normed = Norm(w.mlp_norm);
    Observe(layer, LinearInput::kMlp, normed);
    const at::Tensor gate_up = Linear(normed, w.gate_up);
    const int64_t inner = static_cast<int64_t>(spec_.intermediate);
    const at::Tensor activated = Activate(gate_up.narrow(1, 0, inner)) * gate_up.narrow(1, inner, inner);
    Observe(layer, LinearInput::kMlpOut, activated);
    return activated;
  }
  at::Tensor Activate(const at::Tensor& gate) const {
    using Activation = DecoderSpec::Activation;
    if (spec_.activation == Activation::kSilu) return at::silu(gate);
    return at::gelu(gate, spec_.activation == Activation::kGelu ? "none" : "tanh");
  }

  ForwardResult Finish(bool want_hidden) const {
    ForwardResult result;
    result.amax.assign(range_.sites, 0.0f);
    if (!seen_.empty()) {
      const at::Tensor values = at::stack(seen_).to(at::kFloat).cpu();
      const float* v = static_cast<const float*>(values.data_ptr());
      for (size_t i = 0; i < seen_slots_.size(); ++i) {
        for (const uint32_t slot : *seen_slots_[i]) result.amax[slot] = v[i];
      }
    }
    if (!want_hidden) return result;
    const at::Tensor host = x_.contiguous().cpu();
    result.hidden = range_.session->hidden.Take(host.nbytes());
    std::memcpy(result.hidden.data(), host.data_ptr(), host.nbytes());
    return result;
  }

  const Range& range_;
  const DecoderSpec& spec_;
  const int64_t tokens_, head_dim_, heads_, kv_heads_;
  const double scale_ = 1.0 / std::sqrt(static_cast<double>(head_dim_));
  at::Tensor x_, cos_, sin_;
  std::vector<at::Tensor> seen_;
  std::vector<const std::vector<uint32_t>*> seen_slots_;
};

}  // namespace

ForwardResult OpsForward(const Range& range, const ForwardInput& input) { return OpsPass(range, input).Run(input.want_hidden); }

}  // namespace holdfast
