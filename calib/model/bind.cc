// SPDX-License-Identifier: Apache-2.0
//
// The plan bound to a source checkpoint: every tensor found where it lies, with the dtype it has; nothing missing, nothing left over.
#include <set>

#include "calib/model/decoder.h"

namespace holdfast {
namespace {

std::string ShapeText(const std::vector<uint64_t>& shape) {
  std::string out = "[";
  for (const uint64_t d : shape) out += (out.size() == 1 ? "" : ", ") + std::to_string(d);
  return out + "]";
}

bool MayBeIgnored(const DecoderSpec& spec, const std::string& name) {
  static constexpr std::string_view kInvFreq = ".rotary_emb.inv_freq";   // a buffer that old transformers saved
  return (spec.tied_embeddings && name == kHeadName) || name.ends_with(kInvFreq);
}

Status BindTensor(const SourceModel& source, TensorPlan* t) {
  const SourceModel::Place* place = source.Find(t->name);
  if (place == nullptr) {
    return InvalidArgument(source.dir() + ": tensor " + t->name + " is missing; config.json asks for it with shape " + ShapeText(t->shape));
  }
  const TensorInfo& info = *place->tensor;
  const std::string where = place->file->path() + ": tensor " + t->name;
  if (info.shape != t->shape) {
    return InvalidArgument(where + " has shape " + ShapeText(info.shape) + ", config.json asks for " + ShapeText(t->shape));
  }
  if (info.dtype != DType::kBF16 && info.dtype != DType::kF16 && info.dtype != DType::kF32) {
    return InvalidArgument(where + " has dtype " + DTypeName(info.dtype) +
                           "; BF16, F16 and F32 are read. Give the original, unquantized model directory");
  }
  t->dtype = info.dtype;
  t->file = place->file_index;
  t->offset = info.offset;
  t->bytes = info.bytes;
  return {};
}

}  // namespace

Result<Plan> BindModel(const DecoderSpec& spec, Recipe recipe, const SourceModel& source) {
  HOLDFAST_ASSIGN(Plan plan, DescribeModel(spec, recipe));
  std::set<std::string> bound;
  for (UnitPlan& unit : plan.units) {
    for (TensorPlan& t : unit.tensors) {
      HOLDFAST_TRY(BindTensor(source, &t));
      bound.insert(t.name);
    }
  }
  for (const auto& [name, place] : source.tensors()) {
    if (bound.contains(name) || MayBeIgnored(spec, name)) continue;
    return InvalidArgument(place.file->path() + ": tensor " + name + " does not belong to a " + spec.architecture +
                           " as config.json describes it; it would be lost. Check config.json (layers, biases), or remove the tensor");
  }
  return plan;
}

}  // namespace holdfast
