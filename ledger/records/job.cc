// SPDX-License-Identifier: Apache-2.0
//
// Job and plan as canonical JSON.
#include "ledger/records/fields.h"
#include "ledger/records/records.h"

namespace holdfast {
namespace {

Json FilesToJson(const std::vector<SourceFile>& files) {
  Json all = Json::array();
  for (const SourceFile& s : files) {
    all.push_back({{"name", s.name}, {"size", s.size}, {"mtime_ns", s.mtime_ns}, {"sha256", s.sha256.Hex()}, {"header_sha256", s.header_sha256.Hex()}});
  }
  return all;
}

Status ReadFile(const Json& v, SourceFile* s) {
  return Fields(v, "job record, source file").Get("name", &s->name).Get("size", &s->size).Get("mtime_ns", &s->mtime_ns)
      .Get("sha256", &s->sha256).Get("header_sha256", &s->header_sha256).status();
}

// The product of a tensor's dimensions and element size; false on overflow.
bool ShapeBytes(const std::vector<uint64_t>& shape, DType dtype, uint64_t* bytes) {
  *bytes = DTypeBytes(dtype);
  for (uint64_t d : shape) {
    if (__builtin_mul_overflow(*bytes, d, bytes)) return false;
  }
  return true;
}

Json UnitToJson(const UnitPlan& u) {
  Json tensors = Json::array(), sites = Json::array();
  for (const TensorPlan& t : u.tensors) {
    tensors.push_back({{"name", t.name}, {"dtype", DTypeName(t.dtype)}, {"shape", t.shape}, {"file", t.file}, {"offset", t.offset}, {"bytes", t.bytes}});
  }
  for (const SitePlan& s : u.sites) sites.push_back({{"module", s.module}, {"set", s.set}, {"rows", s.rows}, {"cols", s.cols}});
  return {{"id", u.id}, {"label", u.label}, {"tensors", std::move(tensors)}, {"sites", std::move(sites)}};
}

Status ReadTensor(const Json& v, TensorPlan* t) {
  Fields f(v, "plan record, tensor");
  f.Get("name", &t->name).Get("dtype", &t->dtype).Array("shape", &t->shape).Get("file", &t->file).Get("offset", &t->offset).Get("bytes", &t->bytes);
  HOLDFAST_TRY(f.status());
  uint64_t bytes = 0;
  if (!ShapeBytes(t->shape, t->dtype, &bytes) || bytes != t->bytes) f.Fail("bytes of " + t->name + " do not follow from its shape");
  return f.status();
}

Status ReadSite(const Json& v, SitePlan* s) {
  return Fields(v, "plan record, site").Get("module", &s->module).Get("set", &s->set).Get("rows", &s->rows).Get("cols", &s->cols).status();
}

Status ReadUnit(const Json& v, UnitPlan* u) {
  return Fields(v, "plan record, unit").Get("id", &u->id).Get("label", &u->label)
      .Array("tensors", &u->tensors, ReadTensor).Array("sites", &u->sites, ReadSite).status();
}

Status ReadStage(const Json& v, StagePlan* s) {
  return Fields(v, "plan record, stage").Get("stage", &s->stage.value).Get("first_layer", &s->first_layer).Get("last_layer", &s->last_layer).status();
}

// What the rest of the program relies on: units numbered by place, stages contiguous over [0, layers).
Status CheckPlan(const Plan& p) {
  if (p.units.size() != uint64_t{p.layers} + 2) return Corrupt("plan record: " + std::to_string(p.units.size()) + " units for " + std::to_string(p.layers) + " layers");
  for (size_t i = 0; i < p.units.size(); ++i) {
    if (p.units[i].id != i) return Corrupt("plan record: unit " + std::to_string(i) + " is numbered " + std::to_string(p.units[i].id));
  }
  uint32_t next = 0;
  for (const StagePlan& s : p.stages) {
    if (s.first_layer != next || s.last_layer <= s.first_layer) return Corrupt("plan record: stage " + std::to_string(s.stage.value) + " does not follow the one before");
    next = s.last_layer;
  }
  if (next != p.layers) return Corrupt("plan record: stages end at layer " + std::to_string(next) + " of " + std::to_string(p.layers));
  return OkStatus();
}

}  // namespace

Json JobSpec::ToJson() const {
  Json j = {{"uuid", uuid.Hex()}, {"source", source}, {"out", out}, {"calib", calib}, {"recipe", recipe}, {"architecture", architecture},
            {"numerics", numerics}, {"samples", samples}, {"samples_requested", samples_requested}, {"seq_len", seq_len}, {"shard_bytes", shard_bytes},
            {"calib_sha256", calib_sha256.Hex()}, {"tokens_sha256", tokens_sha256.Hex()},
            {"weights", FilesToJson(weights)}, {"sidecars", FilesToJson(sidecars)}};
  if (!name.empty()) j["name"] = name;
  if (!config.empty()) j["config"] = config;
  if (skip_samples != 0) j["skip_samples"] = skip_samples;
  if (!layout.empty()) j["layout"] = layout;
  return j;
}

Result<JobSpec> JobSpec::FromJson(const Json& j) {
  JobSpec s;
  HOLDFAST_TRY(Fields(j, "job record").Get("uuid", &s.uuid).Get("source", &s.source).Get("out", &s.out).Get("calib", &s.calib)
      .Get("recipe", &s.recipe).Get("architecture", &s.architecture).Get("numerics", &s.numerics).Get("samples", &s.samples)
      .Get("samples_requested", &s.samples_requested)
      .Get("seq_len", &s.seq_len).Get("shard_bytes", &s.shard_bytes).Get("calib_sha256", &s.calib_sha256)
      .Get("tokens_sha256", &s.tokens_sha256).Array("weights", &s.weights, ReadFile).Array("sidecars", &s.sidecars, ReadFile)
      .Optional("name", &s.name).AtMost("name", s.name, kNameBytesMax)
      .Optional("config", &s.config).AtMost("config", s.config, kConfigBytesMax).Optional("skip_samples", &s.skip_samples)
      .Optional("layout", &s.layout).AtMost("layout", s.layout, kNameBytesMax).status());
  return s;
}

std::vector<const SitePlan*> Plan::SitesOf(uint32_t first_layer, uint32_t last_layer) const {
  std::vector<const SitePlan*> sites;
  for (uint32_t i = first_layer; i < last_layer && i < units.size(); ++i) {
    for (const SitePlan& s : units[i].sites) sites.push_back(&s);
  }
  return sites;
}

Json Plan::ToJson() const {
  Json all_units = Json::array(), all_stages = Json::array();
  for (const UnitPlan& u : units) all_units.push_back(UnitToJson(u));
  for (const StagePlan& s : stages) all_stages.push_back({{"stage", s.stage.value}, {"first_layer", s.first_layer}, {"last_layer", s.last_layer}});
  return {{"number", number}, {"layers", layers}, {"hidden_size", hidden_size}, {"input_scales", input_scales},
          {"units", std::move(all_units)}, {"stages", std::move(all_stages)}, {"ignore", ignore}};
}

Result<Plan> Plan::FromJson(const Json& j) {
  Plan p;
  HOLDFAST_TRY(Fields(j, "plan record").Get("number", &p.number).Get("layers", &p.layers).Get("hidden_size", &p.hidden_size)
      .Get("input_scales", &p.input_scales).Array("units", &p.units, ReadUnit).Array("stages", &p.stages, ReadStage)
      .Array("ignore", &p.ignore).status());
  HOLDFAST_TRY(CheckPlan(p));
  return p;
}

}  // namespace holdfast
