// SPDX-License-Identifier: Apache-2.0
#include "export/shard/output_plan.h"

#include <cstdio>
#include <map>

#include "export/nvfp4/nvfp4.h"

namespace holdfast {
namespace {

OutputTensor Make(TensorOrigin origin, std::string name, DType dtype, std::vector<uint64_t> shape) {
  OutputTensor t;
  t.origin = std::move(origin);
  t.info.bytes = DTypeBytes(dtype);
  for (const uint64_t d : shape) t.info.bytes *= d;
  t.info.name = std::move(name);
  t.info.dtype = dtype;
  t.info.shape = std::move(shape);
  return t;
}

// Scales are buffers of the exporting module, not parameters: they do not count in total_parameters.
bool IsScale(const std::string& name, OutputLayout layout) {
  const SiteNames& as = NamesIn(layout);
  return name.ends_with(as.scales) || name.ends_with(as.global) || name.ends_with(as.input);
}

uint64_t Elements(const TensorInfo& t) { return t.bytes / DTypeBytes(t.dtype); }

// Units in the order of the model's state dict: embedding, layers, final norm and head.
std::vector<const UnitPlan*> ModuleOrder(const Plan& plan) {
  HOLDFAST_CHECK(plan.units.size() == plan.layers + 2u);
  std::vector<const UnitPlan*> order = {&plan.units[plan.layers]};
  for (uint32_t i = 0; i < plan.layers; ++i) order.push_back(&plan.units[i]);
  order.push_back(&plan.units[plan.layers + 1]);
  return order;
}

using Shard = std::vector<OutputTensor>;

// Greedy filling as huggingface_hub does it: an oversized tensor becomes a file at once, the file being filled stays open.
std::vector<Shard> FillShards(const Plan& plan, uint64_t shard_bytes, OutputLayout layout) {
  std::vector<Shard> shards;
  Shard current;
  uint64_t filled = 0;
  for (const UnitPlan* unit : ModuleOrder(plan)) {
    for (OutputTensor& t : OutputTensorsOf(plan, *unit, layout)) {
      if (t.info.bytes > shard_bytes) {
        shards.push_back({std::move(t)});
        continue;
      }
      if (filled + t.info.bytes > shard_bytes) {
        shards.push_back(std::exchange(current, {}));
        filled = 0;
      }
      filled += t.info.bytes;
      current.push_back(std::move(t));
    }
  }
  if (!current.empty()) shards.push_back(std::move(current));
  return shards;
}

std::string FileName(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

OutputFile MakeFile(std::string name, const Shard& shard) {
  OutputFile file;
  file.name = std::move(name);
  std::map<std::string, TensorOrigin> origins;
  std::vector<TensorInfo> infos;
  for (const OutputTensor& t : shard) {
    origins[t.info.name] = t.origin;
    infos.push_back(t.info);
  }
  file.layout = LayOutSafetensors(std::move(infos));
  for (const TensorInfo& t : file.layout.tensors) file.origins.push_back(std::move(origins[t.name]));
  return file;
}

}  // namespace

std::vector<OutputTensor> OutputTensorsOf(const Plan& plan, const UnitPlan& unit, OutputLayout layout) {
  const SiteNames &as = NamesIn(layout), &in = NamesIn(kStoredLayout);
  const bool inverse = layout != kStoredLayout;
  const Change change = inverse ? Change::kReciprocal : Change::kNone;
  const std::vector<uint64_t> scalar(inverse ? 1u : 0u, 1u);   // [1] or []
  std::map<std::string, const SitePlan*> sites;
  for (const SitePlan& s : unit.sites) sites[s.module + ".weight"] = &s;
  std::vector<OutputTensor> out;
  for (const TensorPlan& t : unit.tensors) {
    const auto site = sites.find(t.name);
    if (site == sites.end()) {
      out.push_back(Make({unit.id, t.name}, t.name, t.dtype, t.shape));
      continue;
    }
    const SitePlan& s = *site->second;
    out.push_back(Make({unit.id, s.module + in.codes}, s.module + as.codes, DType::kU8, {s.rows, s.cols / 2}));
    out.push_back(Make({unit.id, s.module + in.scales}, s.module + as.scales, DType::kF8E4M3, {s.rows, s.cols / kNvfp4Block}));
    out.push_back(Make({unit.id, s.module + in.global, change}, s.module + as.global, DType::kF32, scalar));
    if (plan.input_scales) out.push_back(Make({unit.id, s.module + in.input, change}, s.module + as.input, DType::kF32, scalar));
  }
  return out;
}

OutputPlan PlanOutput(const Plan& plan, uint64_t shard_bytes, OutputLayout layout) {
  OutputPlan out;
  out.layout = layout;
  const std::vector<Shard> shards = FillShards(plan, shard_bytes, layout);
  for (size_t i = 0; i < shards.size(); ++i) {
    out.files.push_back(MakeFile(FileName(i, shards.size()), shards[i]));
    for (const OutputTensor& t : shards[i]) {
      out.total_size += t.info.bytes;
      if (!IsScale(t.info.name, layout)) out.total_parameters += Elements(t.info);
    }
  }
  return out;
}

}  // namespace holdfast
