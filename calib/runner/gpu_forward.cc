// SPDX-License-Identifier: Apache-2.0
//
// The pass of cpu_forward.cc on a GPU: matmuls and attention are torch's (cuBLAS, flash attention), everything between them is ours, because
// separate operations of torch would cost half as much again as the matmuls. Nothing waits for the device before the sample is done; the
// observed maxima stay there until then. Buffers are torch's, whose allocator hands the same ones to the next sample.
#include <ATen/ATen.h>
#include <torch/version.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <tuple>

#include "calib/model/rope.h"
#include "calib/runner/device_session.h"
#include "calib/runner/forward.h"
#include "ledger/base/trace.h"

// scaled_dot_product_attention with grouped heads.
#define HOLDFAST_FLASH_ATTENTION (TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 5))

namespace holdfast {
namespace {

constexpr size_t kRopeTablesMax = 64;
constexpr size_t kInputs = std::tuple_size_v<SiteSlots>;   // observed tensors of a layer

uint16_t* Raw(const at::Tensor& t) { return static_cast<uint16_t*>(t.data_ptr()); }
size_t Count(const at::Tensor& t) { return static_cast<size_t>(t.numel()); }

// One sample on its way through the range.
class GpuPass {
 public:
  // `x`: [tokens, hidden], becomes the result.
  GpuPass(const Range& range, at::Tensor x)
      : range_(range), spec_(range.spec), tokens_(x.size(0)), head_dim_(spec_.head_dim), heads_(spec_.heads), kv_heads_(spec_.kv_heads),
        inner_(static_cast<int64_t>(spec_.intermediate)), x_(std::move(x)), rope_(Rope(range, static_cast<uint64_t>(tokens_))) {
    const int64_t hidden = static_cast<int64_t>(spec_.hidden);
    normed_ = Bf16({tokens_, hidden});
    delta_ = Bf16({tokens_, hidden});
    qkv_ = Bf16({tokens_, (heads_ + 2 * kv_heads_) * head_dim_});
    gate_up_ = Bf16({tokens_, 2 * inner_});
    activated_ = Bf16({tokens_, inner_});
    amax_ = at::zeros({static_cast<int64_t>(range.weights.layers.size() * kInputs)}, at::TensorOptions().dtype(at::kInt).device(range.device));
  }

  // Queues everything. int32 [layers * kInputs]: bf16 bits.
  at::Tensor Run(bool want_hidden) {
    const size_t layers = range_.weights.layers.size();
    for (size_t i = 0; i < layers; ++i) {
      const LayerWeights& w = range_.weights.layers[i];
      Attention(i, w);
      Mlp(i, w);
      if (i + 1 == layers && !want_hidden) return amax_;   // nobody reads what down_proj would give
      Linear(activated_, w.down, delta_);
      pending_ = true;
    }
    if (pending_) device::Add(Raw(x_), Raw(delta_), Count(x_));
    return amax_;
  }

 private:
  static RopeOnDevice Rope(const Range& range, uint64_t tokens) {
    std::map<uint64_t, RopeOnDevice>& known = range.session->rope;
    if (const auto it = known.find(tokens); it != known.end()) return it->second;
    if (known.size() >= kRopeTablesMax) known.clear();
    const RopeTable table = MakeRopeTable(range.spec.rope, range.spec.max_positions, tokens);
    const auto upload = [&](const std::vector<uint16_t>& values) {
      at::Tensor host = at::empty({static_cast<int64_t>(tokens), range.spec.head_dim / 2}, at::kBFloat16);
      std::memcpy(host.data_ptr(), values.data(), host.nbytes());
      return host.to(range.device);
    };
    return known[tokens] = {upload(table.cos), upload(table.sin)};
  }
  at::Tensor Bf16(at::IntArrayRef shape) const { return at::empty(shape, at::TensorOptions().dtype(at::kBFloat16).device(range_.device)); }
  size_t Tokens() const { return static_cast<size_t>(tokens_); }
  uint32_t* Slot(size_t layer, LinearInput input) const {
    if (range_.slots[layer][static_cast<size_t>(input)].empty()) return nullptr;
    return static_cast<uint32_t*>(amax_.data_ptr()) + layer * kInputs + static_cast<size_t>(input);
  }

  // out = x * weight^T (+ bias), rounded to bf16 once.
  static void Linear(const at::Tensor& x, const LayerWeights::Linear& linear, at::Tensor& out) {
    if (linear.bias.defined()) at::addmm_out(out, linear.bias, x, linear.weight.t());
    else at::mm_out(out, x, linear.weight.t());
  }

  void Norm(const at::Tensor& weight, uint32_t* amax) {
    device::RmsNorm(Raw(x_), pending_ ? Raw(delta_) : nullptr, Raw(weight), static_cast<float>(spec_.norm_eps), Tokens(), spec_.hidden,
                    Raw(normed_), amax);
    pending_ = false;
  }

  void Attention(size_t layer, const LayerWeights& w) {
    Norm(w.input_norm, Slot(layer, LinearInput::kAttention));
    Linear(normed_, w.qkv, qkv_);
    device::Rotate(Raw(qkv_), static_cast<size_t>(qkv_.size(1)), Raw(rope_.cos), Raw(rope_.sin), Tokens(), static_cast<size_t>(heads_ + kv_heads_),
                   static_cast<size_t>(head_dim_));
    const at::Tensor mixed = Attend(spec_.window[range_.first_layer + layer]).transpose(0, 1).reshape({tokens_, heads_ * head_dim_});
    if (uint32_t* amax = Slot(layer, LinearInput::kAttentionOut)) device::Amax(Raw(mixed), Count(mixed), amax);
    Linear(mixed, w.o, delta_);
    pending_ = true;
  }

  // [heads, tokens, head_dim]
  at::Tensor Heads(int64_t first, int64_t count) const {
    return qkv_.narrow(1, first * head_dim_, count * head_dim_).view({tokens_, count, head_dim_}).transpose(0, 1);
  }
  at::Tensor Attend(uint64_t window) {
    const at::Tensor q = Heads(0, heads_).unsqueeze(0), k = Heads(heads_, kv_heads_).unsqueeze(0), v = Heads(heads_ + kv_heads_, kv_heads_).unsqueeze(0);
#if HOLDFAST_FLASH_ATTENTION
    if (window == 0 || window >= static_cast<uint64_t>(tokens_)) {
      return at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true, scale_, /*enable_gqa=*/heads_ != kv_heads_).squeeze(0);
    }
    // Kernels that take a mask want a key head for each head.
    return at::scaled_dot_product_attention(q, ForEachHead(k), ForEachHead(v), Mask(window), 0.0, /*is_causal=*/false, scale_).squeeze(0);
#else
    const at::Tensor hidden = at::logical_not(Mask(window == 0 ? static_cast<uint64_t>(tokens_) : window));
    const at::Tensor scores = (at::matmul(q, ForEachHead(k).transpose(-1, -2)) * scale_).masked_fill(hidden, -std::numeric_limits<float>::infinity());
    return at::matmul(at::softmax(scores, -1, at::kFloat).to(at::kBFloat16), ForEachHead(v)).squeeze(0);
#endif
  }
  at::Tensor ForEachHead(const at::Tensor& of_key_heads) const { return of_key_heads.repeat_interleave(heads_ / kv_heads_, 1); }
  const at::Tensor& Mask(uint64_t window) {   // which keys a query sees; layers alternate between few kinds of window
    at::Tensor& mask = masks_[window];
    if (!mask.defined()) {
      const at::Tensor at = at::arange(tokens_, at::TensorOptions().dtype(at::kLong).device(range_.device));
      const at::Tensor back = at.unsqueeze(1) - at.unsqueeze(0);
      mask = at::logical_and(back >= 0, back < static_cast<int64_t>(window));
    }
    return mask;
  }

  void Mlp(size_t layer, const LayerWeights& w) {
    Norm(w.mlp_norm, Slot(layer, LinearInput::kMlp));
    Linear(normed_, w.gate_up, gate_up_);
    uint32_t* amax = Slot(layer, LinearInput::kMlpOut);
    using Activation = DecoderSpec::Activation;
    if (spec_.activation == Activation::kSilu) return device::SiluMul(Raw(gate_up_), Tokens(), spec_.intermediate, Raw(activated_), amax);
    const at::Tensor gate = gate_up_.narrow(1, 0, inner_).contiguous();
    const at::Tensor a = at::gelu(gate, spec_.activation == Activation::kGelu ? "none" : "tanh");
    device::MulUp(Raw(a), Raw(gate_up_), Tokens(), spec_.intermediate, Raw(activated_), amax);
  }

  const Range& range_;
  const DecoderSpec& spec_;
  const int64_t tokens_, head_dim_, heads_, kv_heads_, inner_;
  const double scale_ = 1.0 / std::sqrt(static_cast<double>(head_dim_));
  at::Tensor x_;          // the residual stream; the last linear's result waits in delta_ while pending_
  const RopeOnDevice rope_;
  at::Tensor normed_, delta_, qkv_, gate_up_, activated_, amax_;
  std::map<uint64_t, at::Tensor> masks_;
  bool pending_ = false;
};

std::vector<float> AmaxOfSites(const Range& range, const std::vector<uint32_t>& bits) {
  std::vector<float> amax(range.sites, 0.0f);
  for (size_t layer = 0; layer < range.slots.size(); ++layer) {
    for (size_t input = 0; input < kInputs; ++input) {
      for (const uint32_t slot : range.slots[layer][input]) amax[slot] = std::bit_cast<float>(bits[layer * kInputs + input] << 16);
    }
  }
  return amax;
}

}  // namespace

bool GpuForwardFits(const DecoderSpec& spec) { return device::ShapesFit(spec.hidden, spec.intermediate, spec.head_dim); }

Result<ForwardResult> GpuForward(const Range& range, const ForwardInput& input) {
  const int device = range.device.has_index() ? range.device.index() : 0;
  HOLDFAST_TRY(device::Use(device));
  HOLDFAST_ASSIGN(const auto lane, range.session->lanes.Borrow([device] { return device::CutLane::New(device); }));
  const int64_t tokens = static_cast<int64_t>(input.tokens), hidden = static_cast<int64_t>(range.spec.hidden);
  const auto bf16 = at::TensorOptions().dtype(at::kBFloat16).device(range.device);
  HOLDFAST_CHECK(input.ids != nullptr || input.hidden.size() == input.tokens * range.spec.hidden * 2);
  void* sent = nullptr;          // token ids or hidden states; a copy on the default stream would wait for the sample before
  {
    const TraceSpan span("send a sample");
    const auto* ids = input.ids == nullptr ? nullptr : reinterpret_cast<const uint8_t*>(input.ids->data());
    HOLDFAST_ASSIGN(sent, lane->Send(ids == nullptr ? input.hidden : ByteSpan(ids, input.ids->size() * sizeof(int32_t))));
  }
  std::optional<GpuPass> pass;   // its buffers live until the device is done with them
  std::vector<uint32_t> bits(range.weights.layers.size() * kInputs);
  ForwardResult result;
  {
    const std::lock_guard lock(range.session->launch);
    const TraceSpan span("queue kernels");
    HOLDFAST_TRY(lane->Arrive());
    const at::Tensor x = input.ids == nullptr ? at::from_blob(sent, {tokens, hidden}, bf16)
                                              : range.weights.embedding.index_select(0, at::from_blob(sent, {tokens}, bf16.dtype(at::kInt)));
    pass.emplace(range, x);
    const at::Tensor amax = pass->Run(input.want_hidden);
    HOLDFAST_TRY(lane->Fetch(x.data_ptr(), input.want_hidden ? x.nbytes() : 0, amax.data_ptr(), amax.nbytes()));
  }
  if (input.want_hidden) result.hidden = range.session->hidden.Take(input.tokens * range.spec.hidden * 2);   // while the device works
  const TraceSpan span("take results");
  HOLDFAST_TRY(lane->Take(result.hidden, std::span(reinterpret_cast<uint8_t*>(bits.data()), bits.size() * sizeof(uint32_t))));
  result.amax = AmaxOfSites(range, bits);
  return result;
}

}  // namespace holdfast
