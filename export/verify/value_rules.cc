// SPDX-License-Identifier: Apache-2.0
//
// V060-V070: what the numbers themselves show. Reads every tensor once, in pieces of a few MiB.
//
// What is certain about a block of a max-calibrated weight, derived from s = blockmax / RN32(6 * scale2),
// scale = E4M3(clamp(s, 2^-9, 448)), code = E2M1(w / RN32(scale * scale2)): the largest element of the block is divided by
// scale * scale2, which gives 6 * s / scale. Rounding to E4M3 keeps s / scale within
//   [17/18, 17/16]  from 2^-6 up (3 mantissa bits)      -> at least 5.66: code 6.0
//   [3.5/4, ...]    scale = k * 2^-9, k >= 4            -> at least 5.25: code 6.0
//   [2.5/3, ...]    k = 3                               -> at least 5.0, a tie: code 4.0 or 6.0
//   [1.5/2, ...]    k = 2                               -> at least 4.5: code 4.0 or 6.0
//   anything        k = 1, the lower clamp
// and a block of zeros has scale 1.0 (0x38) and only zero codes. The float32 roundings (a few 1e-7) are far inside these margins
// as long as scale * scale2 is a normal float32. Scale 0 cannot occur. The block that holds the set's amax has scale 448.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "export/nvfp4/nvfp4.h"
#include "export/verify/output_view.h"
#include "export/verify/parallel.h"

namespace holdfast {
namespace {

constexpr uint8_t kScaleMax = 0x7e, kScaleNan = 0x7f, kScaleOne = 0x38;
constexpr float kNormalMin = 1.17549435e-38f;
constexpr float kBlockRuleMin = 1e-30f;       // scale2 from which the derivation above holds with room to spare
constexpr float kAmaxPerScale = 2688.0f;
constexpr uint64_t kNone = UINT64_MAX;

// amax / 2688, whichever way it is stored; 0 where it is missing.
float Multiplier(const OutputView& view, float stored) { return stored == 0 ? 0 : GlobalScaleIn(view.config.layout, stored); }

struct ScaleStats {           // of one site
  uint8_t max_scale = 0;
  bool all_zero = true;       // every code is +0
  bool all_one = true;        // every scale is 1.0
  uint64_t bad_scales = 0, first_bad = kNone;
  uint64_t bad_blocks = 0, first_bad_block = kNone;
};

// Whether a block of codes can belong to this scale byte; see the derivation above.
bool SoundBlock(uint8_t scale, uint64_t codes) {
  constexpr uint64_t kOnes = 0x1111111111111111ull;
  constexpr uint64_t kMagnitudes = 0x7777777777777777ull;
  if ((codes & kMagnitudes) == 0) return scale == kScaleOne || scale == 0x01;
  const uint64_t at_least_4 = (codes >> 1) & (codes >> 2) & kOnes;  // magnitude codes 6 and 7
  if (scale >= 0x04) return (at_least_4 & codes) != 0;
  return scale == 0x01 || at_least_4 != 0;
}

void ScanBlocks(ByteSpan codes, ByteSpan scales, uint64_t first_block, bool check_blocks, ScaleStats* stats) {
  for (size_t i = 0; i < scales.size(); ++i) {
    const uint8_t scale = scales[i];
    uint64_t block = 0;
    std::memcpy(&block, codes.data() + 8 * i, 8);
    stats->all_zero &= block == 0;
    stats->all_one &= scale == kScaleOne;
    if (scale == 0 || scale >= kScaleNan) {
      if (stats->bad_scales++ == 0) stats->first_bad = first_block + i;
      continue;
    }
    stats->max_scale = std::max(stats->max_scale, scale);
    if (check_blocks && !SoundBlock(scale, block) && stats->bad_blocks++ == 0) stats->first_bad_block = first_block + i;
  }
}

std::string BlockText(const SiteView& site, uint64_t block) {
  const uint64_t per_row = site.cols / kNvfp4Block;
  return "row " + std::to_string(block / per_row) + ", block " + std::to_string(block % per_row);
}

void ReportSite(OutputView* view, const SiteView& site, const ScaleStats& stats) {
  if (stats.bad_scales != 0) {
    view->sink.Add("V061", site.scale->name, std::to_string(stats.bad_scales) + " block scales are negative, NaN or zero, the first in " +
                                                 BlockText(site, stats.first_bad));
  }
  if (stats.bad_blocks != 0) {
    view->sink.Add("V063", site.weight->name, std::to_string(stats.bad_blocks) + " blocks do not reach the top of their scale, the first in " +
                                                  BlockText(site, stats.first_bad_block) + ": codes and scales do not belong together");
  }
  if (stats.all_zero) view->sink.Add("V067", site.weight->name, "every code is 0: a zero matrix in the source, or a lost one");
}

Status ScanSite(OutputView* view, const SiteView& site, ScaleStats* stats) {
  const uint64_t blocks = site.rows * (site.cols / kNvfp4Block);
  const uint64_t step = OutputView::kStreamBytes / 8;
  Bytes codes(std::min(step, blocks) * 8), scales(std::min(step, blocks));
  const float scale2 = Multiplier(*view, site.scale2_value);
  const bool check_blocks = scale2 >= kBlockRuleMin && std::isfinite(scale2);
  for (uint64_t at = 0; at < blocks; at += step) {
    const uint64_t n = std::min(step, blocks - at);
    HOLDFAST_TRY(view->Read(*site.weight, at * 8, std::span(codes).first(n * 8)));
    HOLDFAST_TRY(view->Read(*site.scale, at, std::span(scales).first(n)));
    ScanBlocks(ByteSpan(codes).first(n * 8), ByteSpan(scales).first(n), at, check_blocks, stats);
  }
  ReportSite(view, site, *stats);
  return OkStatus();
}

// ---- scalars and sets ----

Result<float> ReadScalar(OutputView* view, const TensorInfo& t) {
  uint8_t raw[4];
  HOLDFAST_TRY(view->Read(t, 0, raw));
  float value = 0;
  std::memcpy(&value, raw, 4);
  if (!std::isfinite(value) || value < kNormalMin) {
    view->sink.Add("V060", t.name, "the value is " + FloatText(value) + "; a scale is finite, positive and not subnormal");
    return 0.0f;
  }
  return value;
}

Status ReadScalars(OutputView* view) {
  for (SiteView& site : view->sites) {
    if (site.scale2 != nullptr && site.scale2->dtype == DType::kF32 && site.scale2->bytes == 4) {
      HOLDFAST_ASSIGN(site.scale2_value, ReadScalar(view, *site.scale2));
    }
    if (site.input != nullptr) {
      HOLDFAST_ASSIGN(site.input_value, ReadScalar(view, *site.input));
    }
  }
  return OkStatus();
}

// Sets as the plan has them. Without a plan: what engines fuse by name, joined with what shares a scale inside one layer
// (architectures that share more widely show it by equal bits).
void BuildSets(OutputView* view) {
  std::map<std::string, std::vector<size_t>> groups;
  std::map<std::string, std::string> joined;  // key by shared scale -> key of the set that had it first
  for (size_t i = 0; i < view->sites.size(); ++i) {
    const SiteView& site = view->sites[i];
    const auto fused = FusedNameOf(site.module);
    std::string key = fused ? fused->parent + fused->set : site.module;
    if (view->options.expected != nullptr) {
      key = site.unit + "/" + std::to_string(site.plan_set);
    } else if (site.scale2_value != 0) {
      key = joined.emplace(site.unit + "/" + FloatText(site.scale2_value), key).first->second;
    }
    groups[key].push_back(i);
  }
  for (auto& [key, members] : groups) view->sets.push_back(std::move(members));
}

void CheckShared(OutputView* view, const std::vector<const SiteView*>& set, float SiteView::*value, const char* suffix) {
  const SiteView* first = nullptr;
  for (const SiteView* site : set) {
    if (site->*value == 0) continue;  // missing or already refused
    if (first == nullptr) first = site;
    if (site->*value == first->*value) continue;
    view->sink.Add("V064", site->module + suffix, FloatText(site->*value) + " differs from " + FloatText(first->*value) + " of " +
                                                      first->module + ": engines use one value for both");
  }
}

// What must share: the plan's sets, or the siblings that engines fuse.
void CheckSharing(OutputView* view) {
  std::map<std::string, std::vector<const SiteView*>> groups;
  for (const SiteView& site : view->sites) {
    const auto fused = FusedNameOf(site.module);
    if (view->options.expected != nullptr) {
      groups[site.unit + "/" + std::to_string(site.plan_set)].push_back(&site);
    } else if (fused) {
      groups[fused->parent + fused->set].push_back(&site);
    }
  }
  for (const auto& [key, set] : groups) {
    CheckShared(view, set, &SiteView::scale2_value, view->config.names().global);
    CheckShared(view, set, &SiteView::input_value, view->config.names().input);
  }
}

void CheckSetMaximum(OutputView* view, const std::vector<size_t>& set, const std::vector<ScaleStats>& stats) {
  uint8_t top = 0;
  bool zero = true, complete = true;
  for (const size_t i : set) {
    complete &= view->sites[i].readable && stats[i].bad_scales == 0 && view->sites[i].scale2_value != 0;
    top = std::max(top, stats[i].max_scale);
    zero &= stats[i].all_zero && stats[i].all_one && view->sites[i].scale2_value == 1.0f;
  }
  if (!complete || zero || top == kScaleMax) return;
  const SiteView& first = view->sites[set.front()];
  view->sink.Add("V062", first.module, "the largest block scale of its set of " + std::to_string(set.size()) + " is " +
                                           FloatText(E4m3ToFloat(top)) + ", expected 448: " + (view->config.names().global + 1) + " is not of these weights");
}

// ---- conventions ----

float Median(std::vector<float> values) {
  const size_t mid = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + mid, values.end());
  return values[mid];
}

// A reciprocal shows by lying on the wrong side of 1: weights of a model are far below 2688, activations mostly so.
// Exactly 1 is what an amax of 0 gets, and says nothing.
void CheckConventions(OutputView* view) {
  const SiteNames& names = view->config.names();
  const std::string here = view->config.layout == OutputLayout::kModelopt ? ": stored as a reciprocal? Here it is amax/2688" : ": stored as a multiplier? Here it is 2688/amax";
  std::vector<float> inputs;
  for (const SiteView& site : view->sites) {
    const float scale2 = Multiplier(*view, site.scale2_value), input = Multiplier(*view, site.input_value);
    if (scale2 > 1) {
      view->sink.Add("V068", site.module + names.global, FloatText(site.scale2_value) + " implies weights up to " + FloatText(scale2 * kAmaxPerScale) + here);
    }
    if (input == 0 || input == 1) continue;
    inputs.push_back(input);
    const float amax = input * kAmaxPerScale;
    if (amax < 1e-4f || amax > 1e6f) {
      view->sink.Add("V070", site.module + names.input, FloatText(site.input_value) + " implies activations up to " + FloatText(amax));
    }
  }
  if (!inputs.empty() && Median(inputs) > 1) {
    view->sink.Add("V069", names.input + 1, "half of " + std::to_string(inputs.size()) + " linears would see activations over " + FloatText(Median(inputs) * kAmaxPerScale) + here);
  }
}

// ---- tensors that are not quantized ----

struct PlainStats {
  bool all_zero = true;
  uint64_t bad = 0, first_bad = kNone;
};

template <class Word>
void ScanWords(ByteSpan data, Word exponent, uint64_t first, PlainStats* stats) {
  Word any = 0;
  for (size_t i = 0; i < data.size() / sizeof(Word); ++i) {
    Word w;
    std::memcpy(&w, data.data() + i * sizeof(Word), sizeof(Word));
    any |= static_cast<Word>(w << 1);  // -0 is zero too
    if ((w & exponent) == exponent && stats->bad++ == 0) stats->first_bad = first + i;
  }
  stats->all_zero &= any == 0;
}

void ScanFloats(DType dtype, ByteSpan data, uint64_t first, PlainStats* stats) {
  switch (dtype) {
    case DType::kBF16: return ScanWords<uint16_t>(data, 0x7f80, first, stats);
    case DType::kF16: return ScanWords<uint16_t>(data, 0x7c00, first, stats);
    default: return ScanWords<uint32_t>(data, 0x7f800000u, first, stats);
  }
}

void ReportPlain(OutputView* view, const PlainView& plain, const PlainStats& stats) {
  const std::string& name = plain.tensor->name;
  if (stats.bad != 0) {
    view->sink.Add("V065", name, std::to_string(stats.bad) + " elements are NaN or infinite, the first is number " + std::to_string(stats.first_bad));
  }
  if (!stats.all_zero || plain.tensor->bytes == 0) return;
  if (plain.kind == PlainView::Kind::kLinear) {
    view->sink.Add("V067", name, "every element is 0: a zero matrix in the source, or a lost one");
  } else if (plain.kind != PlainView::Kind::kOther) {
    view->sink.Add("V066", name, "every element is 0: the tensor was never written (a known defect of offloaded exports)");
  }
}

Status ScanPlain(OutputView* view, const PlainView& plain) {
  const TensorInfo& t = *plain.tensor;
  const uint64_t width = DTypeBytes(t.dtype);
  Bytes buffer(std::min(OutputView::kStreamBytes, t.bytes));
  PlainStats stats;
  for (uint64_t at = 0; at < t.bytes; at += OutputView::kStreamBytes) {
    const std::span<uint8_t> part(buffer.data(), std::min(OutputView::kStreamBytes, t.bytes - at));
    HOLDFAST_TRY(view->Read(t, at, part));
    ScanFloats(t.dtype, part, at / width, &stats);
  }
  ReportPlain(view, plain, stats);
  return OkStatus();
}

// A tied model with an lm_head of its own is harmless only while both are the same.
Status CompareTied(OutputView* view, const TensorInfo& head) {
  const TensorInfo* embedding = view->Find("model.embed_tokens.weight");
  bool same = embedding != nullptr && embedding->dtype == head.dtype && embedding->shape == head.shape;
  Bytes a(std::min(OutputView::kStreamBytes, head.bytes)), b(a.size());
  for (uint64_t at = 0; same && at < head.bytes; at += OutputView::kStreamBytes) {
    const size_t n = std::min(OutputView::kStreamBytes, head.bytes - at);
    HOLDFAST_TRY(view->Read(head, at, std::span(a).first(n)));
    HOLDFAST_TRY(view->Read(*embedding, at, std::span(b).first(n)));
    same = std::memcmp(a.data(), b.data(), n) == 0;
  }
  if (same) {
    view->sink.Add("V046", head.name, "the embedding is tied to it: engines drop this second copy");
  } else {
    view->sink.Add("V047", head.name, "tie_word_embeddings is true, but this differs from model.embed_tokens.weight: which one counts depends on the engine");
  }
  return OkStatus();
}

}  // namespace

std::string FloatText(float x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(x));
  return text;
}

Status CheckValues(OutputView* view) {
  HOLDFAST_TRY(ReadScalars(view));
  BuildSets(view);
  CheckSharing(view);
  CheckConventions(view);
  std::vector<ScaleStats> stats(view->sites.size());
  const auto scan = [&](size_t i) -> Status {
    if (i < view->sites.size()) return view->sites[i].readable ? ScanSite(view, view->sites[i], &stats[i]) : OkStatus();
    const PlainView& plain = view->plain[i - view->sites.size()];
    if (plain.tied_copy) HOLDFAST_TRY(CompareTied(view, *plain.tensor));
    return ScanPlain(view, plain);
  };
  HOLDFAST_TRY(ParallelFor(view->threads(), view->sites.size() + view->plain.size(), scan, [&] { view->Tick(); }));
  for (const std::vector<size_t>& set : view->sets) CheckSetMaximum(view, set, stats);
  return OkStatus();
}

}  // namespace holdfast
