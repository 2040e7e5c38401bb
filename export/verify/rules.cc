// SPDX-License-Identifier: Apache-2.0
#include "export/verify/rules.h"

#include <algorithm>
#include <tuple>

#include "ledger/base/result.h"

namespace holdfast {
namespace {

constexpr Severity kE = Severity::kError;
constexpr Severity kW = Severity::kWarning;

constexpr VerifyRule kRules[] = {
    {"V001", kE, "SHA256SUMS is there and every line is a digest, two spaces and a file name"},
    {"V002", kE, "every file that SHA256SUMS lists is there"},
    {"V003", kE, "every file has the SHA-256 that SHA256SUMS lists"},
    {"V004", kE, "SHA256SUMS lists every file of the directory"},
    {"V005", kE, "no temporary or partial file lies in the directory"},
    {"V006", kE, "every shard is a well-formed safetensors file"},
    {"V007", kE, "the weights are there: model.safetensors, or an index and every shard that it names"},
    {"V008", kE, "the index lists every tensor once, in the shard that holds it, and nothing else"},
    {"V009", kE, "total_size of the index is the number of bytes of all tensors"},
    {"V010", kE, "no safetensors file lies beside the model without being part of it"},

    {"V020", kE, "config.json is there and is JSON"},
    {"V021", kE, "a quantization config is there"},
    {"V022", kW, "the quantization config is in config.json, not only in hf_quant_config.json"},
    {"V023", kE, "quant_method is modelopt or compressed-tensors"},
    {"V024", kE, "modelopt: quant_algo is NVFP4 or W4A16_NVFP4"},
    {"V025", kE, "group_size is 16 in every place"},
    {"V026", kE, "the exclude list is there and is a list of names"},
    {"V027", kE, "config_groups describe NVFP4 of all linears, and what quant_algo says"},
    {"V028", kE, "lm_head is excluded"},
    {"V029", kE, "the quantization config is understood as a whole"},
    {"V030", kW, "modelopt: hf_quant_config.json is there and complete"},
    {"V031", kW, "hf_quant_config.json agrees with config.json; compressed-tensors has none"},
    {"V032", kW, "no KV cache scheme and no k/v scales, or both"},
    {"V033", kE, "no quantized linear is excluded"},
    {"V034", kE, "a fused set is excluded as a whole or not at all"},
    {"V035", kE, "every linear that is not quantized is excluded"},
    {"V036", kW, "the architecture is known, so that every tensor can be expected"},
    {"V037", kE, "compressed-tensors: the format is nvfp4-pack-quantized, at the top and in every group"},
    {"V038", kE, "compressed-tensors: quantization_status is compressed"},
    {"V039", kE, "compressed-tensors: groups hold known keys only, and nothing is sparse, transformed or reordered"},

    {"V040", kE, "every tensor of the model is there"},
    {"V041", kE, "no tensor is there that nobody asked for"},
    {"V042", kE, "every tensor has its dtype"},
    {"V043", kE, "every tensor has its shape"},
    {"V044", kW, "modelopt: scalars have shape []"},
    {"V046", kW, "tied weights: lm_head.weight is not stored a second time"},
    {"V047", kE, "tied weights: an lm_head.weight that is stored equals the embedding"},
    {"V048", kW, "widths suit the kernels: K % 64 == 0, N % 32 == 0"},
    {"V049", kW, "no buffer is stored that loaders compute themselves"},

    {"V060", kE, "scales of whole tensors are finite, positive and not subnormal"},
    {"V061", kE, "block scales are positive: no sign, no NaN, no zero"},
    {"V062", kE, "the largest block scale of a fused set is 448"},
    {"V063", kE, "every block uses the full range of its scale"},
    {"V064", kE, "a fused set shares its scales of whole tensors bit for bit"},
    {"V065", kE, "unquantized tensors are finite"},
    {"V066", kE, "norms, embeddings and lm_head are not all zero"},
    {"V067", kW, "no linear is all zero"},
    {"V068", kE, "weight_scale_2 is a multiplier, weight_global_scale a divisor"},
    {"V069", kE, "input_scale is a multiplier, input_global_scale a divisor"},
    {"V070", kW, "the input scale implies an activation maximum between 1e-4 and 1e6"},

    {"V080", kE, "the source has every weight of the output, in the same shape"},
    {"V081", kE, "quantizing the source again gives the same bytes"},
    {"V082", kE, "tensors that are not quantized are those of the source"},
};

}  // namespace

std::span<const VerifyRule> VerifyRules() { return kRules; }

const VerifyRule* FindVerifyRule(const std::string& code) {
  for (const VerifyRule& r : kRules) {
    if (code == r.code) return &r;
  }
  return nullptr;
}

void FindingSink::Add(const char* code, std::string object, std::string message) {
  const VerifyRule* rule = FindVerifyRule(code);
  HOLDFAST_CHECK(rule != nullptr);
  const std::lock_guard lock(mutex_);
  findings_.push_back({code, rule->severity, std::move(object), std::move(message)});
}

bool FindingSink::Has(const char* code) const {
  const std::lock_guard lock(mutex_);
  return std::any_of(findings_.begin(), findings_.end(), [&](const VerifyFinding& f) { return f.code == code; });
}

std::vector<VerifyFinding> FindingSink::Take() {
  const std::lock_guard lock(mutex_);
  std::sort(findings_.begin(), findings_.end(), [](const VerifyFinding& a, const VerifyFinding& b) {
    return std::tie(a.code, a.object, a.message) < std::tie(b.code, b.object, b.message);
  });
  std::vector<VerifyFinding> out;
  for (size_t i = 0; i < findings_.size();) {
    size_t end = i;
    while (end < findings_.size() && findings_[end].code == findings_[i].code) ++end;
    const size_t keep = std::min(end, i + kFindingsPerCode);
    const VerifyFinding first = findings_[i];
    std::move(findings_.begin() + i, findings_.begin() + keep, std::back_inserter(out));
    if (keep < end) {
      out.push_back({first.code, first.severity, first.object,
                     std::to_string(end - keep) + " more findings of this kind are not listed"});
    }
    i = end;
  }
  findings_.clear();
  return out;
}

}  // namespace holdfast
