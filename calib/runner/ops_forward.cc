// SPDX-License-Identifier: Apache-2.0
//
// Every decoder that a DecoderSpec describes, in torch operations alone: what models compute with that the fused kernels do not know, on any device, and
// on a CPU the plain statement of what those kernels must compute. Follows transformers operation by operation, with its roundings. Observed maxima stay on
// the device until the sample is done, so that nothing waits for them.
#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "calib/model/memory_plan.h"
#include "calib/model/rope.h"
#include "calib/runner/device_session.h"
#include "calib/runner/forward.h"

namespace holdfast {
namespace {

class OpsPass {
 public:
  OpsPass(const Range& range, const ForwardInput& input)
      : range_(range), spec_(range.spec), tokens_(static_cast<int64_t>(input.tokens)), head_dim_(spec_.head_dim), heads_(spec_.heads),
        kv_heads_(spec_.kv_heads) {
    ropes_[0] = Upload(spec_.rope);
    if (spec_.local_rope.dims != 0) ropes_[1] = Upload(spec_.local_rope);
    if (input.ids == nullptr) {
      HOLDFAST_CHECK(input.hidden.size() == input.tokens * spec_.hidden * 2);
      x_ = Upload(input.hidden.data(), {tokens_, static_cast<int64_t>(spec_.hidden)});
    } else {
      at::Tensor ids = at::empty({tokens_}, at::kInt);
      std::memcpy(ids.data_ptr(), input.ids->data(), input.ids->size() * sizeof(int32_t));
      x_ = range.weights.embedding.index_select(0, ids.to(range.device));
      if (spec_.embedding_scale != 1) x_ = x_ * at::scalar_tensor(spec_.embedding_scale, at::kFloat).to(at::kBFloat16).to(range.device);
    }
  }

  ForwardResult Run(bool want_hidden) {
    const size_t layers = range_.weights.separate.size();
    for (size_t i = 0; i < layers; ++i) {
      const bool all = want_hidden || i + 1 < layers;   // behind the last down projection nobody reads
      spec_.block == BlockShape::kParallel ? Parallel(i, all) : Sequential(i, all);
    }
    return Finish(want_hidden);
  }

 private:
  struct Rope {
    at::Tensor cos, sin;   // [tokens, dims / 2]
    int64_t dims = 0;
    bool interleaved = false;
  };
  Rope Upload(const RopeSpec& rope) {
    const RopeTable table = MakeRopeTable(rope, spec_.max_positions, static_cast<uint64_t>(tokens_));
    return {Upload(table.cos.data(), {tokens_, rope.dims / 2}), Upload(table.sin.data(), {tokens_, rope.dims / 2}), rope.dims, rope.interleaved};
  }
  at::Tensor Upload(const void* bits, at::IntArrayRef shape) {
    at::Tensor host = at::empty(shape, at::kBFloat16);
    std::memcpy(host.data_ptr(), bits, static_cast<size_t>(host.numel()) * 2);
    return host.to(range_.device);
  }

  void Sequential(size_t i, bool all) {
    const SeparateWeights& w = range_.weights.separate[i];
    const auto behind = [&](const at::Tensor& x, NormRole role) { return spec_.block == BlockShape::kSandwich ? Norm(x, w[role]) : x; };
    const at::Tensor before = Norm(x_, w[NormRole::kAttention]);
    Observe(i, LinearInput::kAttention, before);
    x_ = x_ + behind(Attention(i, w, before), NormRole::kAfterAttention);
    const at::Tensor between = Norm(x_, w[NormRole::kMlp]);
    Observe(i, LinearInput::kMlp, between);
    const at::Tensor activated = Activated(i, w, between);
    if (all) x_ = x_ + behind(Linear(activated, w[LinearRole::kDown]), NormRole::kAfterMlp);
  }
  void Parallel(size_t i, bool all) {
    const SeparateWeights& w = range_.weights.separate[i];
    const at::Tensor before = Norm(x_, w[NormRole::kAttention]);
    Observe(i, LinearInput::kAttention, before);
    const at::Tensor attention = Attention(i, w, before), activated = Activated(i, w, before);
    if (all) x_ = x_ + attention + Linear(activated, w[LinearRole::kDown]);
  }

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

  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const {
    at::Tensor y = x.to(at::kFloat);
    if (spec_.norm == NormKind::kLayer) y = y - y.mean(-1, true);
    y = y * at::rsqrt(y.pow(2).mean(-1, true) + spec_.norm_eps);
    if (spec_.norm == NormKind::kRms) return weight * y.to(at::kBFloat16);
    const at::Tensor wide = weight.to(at::kFloat);
    return (y * (spec_.norm == NormKind::kLayer ? wide : 1.0 + wide)).to(at::kBFloat16);
  }

  // x: [tokens, count * head_dim] -> [count, tokens, head_dim]
  at::Tensor Heads(const at::Tensor& x, int64_t count, const at::Tensor& norm) const {
    at::Tensor heads = x.view({tokens_, count, head_dim_});
    if (norm.defined()) heads = Norm(heads, norm);
    return heads.transpose(0, 1);
  }
  // x: [heads, tokens, head_dim]
  at::Tensor Rotate(const at::Tensor& x, RopeUse use) const {
    if (use == RopeUse::kNone) return x;
    const Rope& rope = ropes_[use == RopeUse::kLocal ? 1 : 0];
    if (rope.interleaved) return RotatePairs(x, rope);
    const int64_t half = rope.dims / 2;
    const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
    const at::Tensor turned = at::cat({a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin}, -1);
    return rope.dims == head_dim_ ? turned : at::cat({turned, x.narrow(-1, rope.dims, head_dim_ - rope.dims)}, -1);
  }
  at::Tensor RotatePairs(const at::Tensor& x, const Rope& rope) const {
    const at::Tensor wide = x.to(at::kFloat);
    const at::Tensor a = wide.slice(-1, 0, head_dim_, 2), b = wide.slice(-1, 1, head_dim_, 2);
    return at::stack({a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin}, -1).flatten(-2).to(at::kBFloat16);
  }

  // What o_proj gives.
  at::Tensor Attention(size_t i, const SeparateWeights& w, const at::Tensor& x) {
    const size_t layer = range_.first_layer + i;
    std::array<at::Tensor, 3> qkv;
    if (spec_.fused_qkv) {
      const at::Tensor all = Linear(x, w[LinearRole::kQkv]);
      qkv = {all.narrow(1, 0, heads_ * head_dim_), all.narrow(1, heads_ * head_dim_, kv_heads_ * head_dim_),
             all.narrow(1, (heads_ + kv_heads_) * head_dim_, kv_heads_ * head_dim_)};
      for (at::Tensor& t : qkv) t = t.contiguous();
    } else {
      qkv = {Linear(x, w[LinearRole::kQ]), Linear(x, w[LinearRole::kK]), Linear(x, w[LinearRole::kV])};
    }
    const int64_t group = heads_ / kv_heads_;
    // [kv_heads, group, tokens, head_dim] against [kv_heads, 1, tokens, head_dim]
    const at::Tensor q = Rotate(Heads(qkv[0], heads_, w[NormRole::kQuery]), spec_.rope_of[layer]).reshape({kv_heads_, group, tokens_, head_dim_});
    const at::Tensor k = Rotate(Heads(qkv[1], kv_heads_, w[NormRole::kKey]), spec_.rope_of[layer]).unsqueeze(1);
    const at::Tensor v = Heads(qkv[2], kv_heads_, {}).unsqueeze(1);
    const int64_t block = static_cast<int64_t>(OpsQueryBlock(spec_.heads, static_cast<uint64_t>(tokens_)));
    std::vector<at::Tensor> blocks;
    for (int64_t begin = 0; begin < tokens_; begin += block) {
      blocks.push_back(AttendBlock(q, k, v, begin, std::min(begin + block, tokens_), spec_.window[layer]));
    }
    const at::Tensor mixed = at::cat(blocks, 2).view({heads_, tokens_, head_dim_}).transpose(0, 1).reshape({tokens_, heads_ * head_dim_});
    Observe(i, LinearInput::kAttentionOut, mixed);
    return Linear(mixed, w[LinearRole::kO]);
  }

  at::Tensor AttendBlock(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t begin, int64_t end, uint64_t window) const {
    const at::Tensor queries = q.narrow(2, begin, end - begin);
    const at::Tensor keys = k.narrow(2, 0, end), values = v.narrow(2, 0, end);
    at::Tensor scores = Matmul(queries, keys.transpose(-1, -2)) * spec_.attention_scale;
    if (spec_.attention_softcap != 0) scores = at::tanh(scores / spec_.attention_softcap) * spec_.attention_softcap;
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

  // What down_proj reads.
  at::Tensor Activated(size_t i, const SeparateWeights& w, const at::Tensor& x) {
    at::Tensor gate, up;
    if (spec_.fused_gate_up) {
      const int64_t inner = static_cast<int64_t>(spec_.intermediate);
      const at::Tensor both = Linear(x, w[LinearRole::kGateUp]);
      gate = both.narrow(1, 0, inner), up = both.narrow(1, inner, inner);
    } else {
      gate = Linear(x, w[LinearRole::kGate]), up = Linear(x, w[LinearRole::kUp]);
    }
    const at::Tensor activated = Activate(gate) * up;
    Observe(i, LinearInput::kMlpOut, activated);
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
  std::array<Rope, 2> ropes_;   // global, local
  at::Tensor x_;
  std::vector<at::Tensor> seen_;
  std::vector<const std::vector<uint32_t>*> seen_slots_;
};

}  // namespace

ForwardResult OpsForward(const Range& range, const ForwardInput& input) { return OpsPass(range, input).Run(input.want_hidden); }

}  // namespace holdfast
