// SPDX-License-Identifier: Apache-2.0
#include "export/shard/output_plan.h"

#include <cstdio>
#include <map>

#include "export/nvfp4/nvfp4.h"

namespace holdfast {
namespace {

OutputTensor Make(uint32_t unit, std::string name, DType dtype, std::vector<uint64_t> shape) {
  OutputTensor t;
  t.unit = unit;
  t.info.bytes = DTypeBytes(dtype);
  for (const uint64_t d : shape) t.info.bytes *= d;
  t.info.name = std::move(name);
  t.info.dtype = dtype;
  t.info.shape = std::move(shape);
  return t;
}

// Scales are buffers of the exporting module, not parameters: they do not count in total_parameters.
bool IsScale(const std::string& name) {
  return name.ends_with(".weight_scale") || name.ends_with(".weight_scale_2") ||
         name.ends_with(".input_scale");
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
std::vector<Shard> FillShards(const Plan& plan, uint64_t shard_bytes) {
  std::vector<Shard> shards;
  Shard current;
  uint64_t filled = 0;
  for (const UnitPlan* unit : ModuleOrder(plan)) {
    for (OutputTensor& t : OutputTensorsOf(plan, *unit)) {
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
  std::map<std::string, uint32_t> unit_of;
  std::vector<TensorInfo> infos;
  for (const OutputTensor& t : shard) {
    unit_of[t.info.name] = t.unit;
    infos.push_back(t.info);
  }
  file.layout = LayOutSafetensors(std::move(infos));
  for (const TensorInfo& t : file.layout.tensors) file.units.push_back(unit_of[t.name]);
  return file;
}

}  // namespace

std::vector<OutputTensor> OutputTensorsOf(const Plan& plan, const UnitPlan& unit) {
  std::map<std::string, const SitePlan*> sites;
  for (const SitePlan& s : unit.sites) sites[s.module + ".weight"] = &s;
  std::vector<OutputTensor> out;
  for (const TensorPlan& t : unit.tensors) {
    const auto site = sites.find(t.name);
    if (site == sites.end()) {
      out.push_back(Make(unit.id, t.name, t.dtype, t.shape));
      continue;
    }
    const SitePlan& s = *site->second;
    out.push_back(Make(unit.id, t.name, DType::kU8, {s.rows, s.cols / 2}));
    out.push_back(Make(unit.id, t.name + "_scale", DType::kF8E4M3, {s.rows, s.cols / kNvfp4Block}));
    out.push_back(Make(unit.id, t.name + "_scale_2", DType::kF32, {}));
    if (plan.input_scales) out.push_back(Make(unit.id, s.module + ".input_scale", DType::kF32, {}));
  }
  return out;
}

OutputPlan PlanOutput(const Plan& plan, uint64_t shard_bytes) {
  OutputPlan out;
  const std::vector<Shard> shards = FillShards(plan, shard_bytes);
  for (size_t i = 0; i < shards.size(); ++i) {
    out.files.push_back(MakeFile(FileName(i, shards.size()), shards[i]));
    for (const OutputTensor& t : shards[i]) {
      out.total_size += t.info.bytes;
      if (!IsScale(t.info.name)) out.total_parameters += Elements(t.info);
    }
  }
  return out;
}

}  // namespace holdfast
