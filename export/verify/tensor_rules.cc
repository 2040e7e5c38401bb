// SPDX-License-Identifier: Apache-2.0
//
// V033-V049: names, dtypes and shapes, judged from the headers alone, and the exclude list against what is stored.
// With a plan every tensor is expected by name; without one the names that are there say what should be beside them.
#include <algorithm>

#include "export/verify/output_view.h"

namespace holdfast {
namespace {

bool IsFloat(DType t) { return t == DType::kBF16 || t == DType::kF16 || t == DType::kF32; }

// The layer of a tensor or module: everything up to its first number ("model.layers.3").
std::string LayerOf(const std::string& name) {
  for (size_t at = name.find('.'); at != std::string::npos; at = name.find('.', at + 1)) {
    size_t end = at + 1;
    while (end < name.size() && name[end] >= '0' && name[end] <= '9') ++end;
    if (end > at + 1 && (end == name.size() || name[end] == '.')) return name.substr(0, end);
  }
  return "";
}

std::string ModuleOf(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

PlainView::Kind KindOf(const TensorInfo& t) {
  const std::string module = ModuleOf(t.name);
  if (!t.name.ends_with(".weight")) return PlainView::Kind::kOther;
  if (module == "lm_head" || module.ends_with(".lm_head")) return PlainView::Kind::kHead;
  if (module.find("embed") != std::string::npos || module.ends_with(".wte")) return PlainView::Kind::kEmbedding;
  const bool norm = module.find("norm", module.rfind('.') + 1) != std::string::npos;   // one of each head has two dimensions
  if (t.shape.size() == 2 && !norm) return PlainView::Kind::kLinear;
  return norm ? PlainView::Kind::kNorm : PlainView::Kind::kOther;
}

class TensorChecker {
 public:
  explicit TensorChecker(OutputView* view) : view_(*view), names_(view->config.names()) {}

  void Run() {
    if (view_.options.expected != nullptr) {
      ExpectPlan(*view_.options.expected);
    } else {
      view_.sink.Add("V036", "config.json", "the architecture is not known here: a tensor that is missing altogether cannot be noticed");
      DiscoverSites();
    }
    for (SiteView& site : view_.sites) CheckSite(&site);
    if (view_.options.expected == nullptr) {
      DiscoverPlain();
      CheckLayerCount();
    }
    JudgeLeftovers();
    if (view_.config.understood) CheckExcludes();
  }

 private:
  bool WeightOnly() const {
    if (view_.config.understood || view_.options.expected == nullptr) return view_.config.weight_only;
    return !view_.options.expected->input_scales;
  }

  bool IsTied() const {
    const Plan* plan = view_.options.expected;
    if (plan == nullptr) return view_.config.tied.value_or(false);
    for (const UnitPlan& unit : plan->units) {
      for (const TensorPlan& t : unit.tensors) {
        if (t.name == "lm_head.weight") return false;
      }
    }
    return true;
  }

  void Shape(const TensorInfo& t, const std::vector<uint64_t>& want, bool* ok) {
    if (t.shape == want) return;
    *ok = false;
    view_.sink.Add("V043", t.name, "shape is " + ShapeText(t.shape) + ", expected " + ShapeText(want));
  }

  void Type(const TensorInfo& t, DType want, bool* ok) {
    if (t.dtype == want) return;
    *ok = false;
    view_.sink.Add("V042", t.name, std::string("dtype is ") + DTypeName(t.dtype) + ", expected " + DTypeName(want));
  }

  const TensorInfo* Claim(const std::string& name) {
    claimed_.insert(name);
    return view_.Find(name);
  }

  const TensorInfo* Require(const std::string& name) {
    const TensorInfo* t = Claim(name);
    if (t == nullptr) view_.sink.Add("V040", name, "the tensor is missing; engines would run on whatever memory holds, without a word");
    return t;
  }

  void AddPlain(const TensorInfo& t) {
    PlainView plain;
    plain.tensor = &t;
    plain.kind = KindOf(t);
    view_.plain.push_back(plain);
  }

  // ---- what is expected ----

  void ExpectPlan(const Plan& plan) {
    for (const UnitPlan& unit : plan.units) {
      std::set<std::string> weights;
      for (const SitePlan& s : unit.sites) {
        weights.insert(s.module + ".weight");
        SiteView site;
        site.module = s.module;
        site.unit = unit.label;
        site.rows = s.rows;
        site.cols = s.cols;
        site.plan_set = s.set;
        view_.sites.push_back(std::move(site));
      }
      for (const TensorPlan& t : unit.tensors) {
        if (!weights.contains(t.name)) ExpectPlain(t.name, t.shape);
      }
    }
  }

  void ExpectPlain(const std::string& name, const std::vector<uint64_t>& shape) {
    const TensorInfo* t = Require(name);
    if (t == nullptr) return;
    bool ok = IsFloat(t->dtype);
    if (!ok) view_.sink.Add("V042", name, std::string("dtype is ") + DTypeName(t->dtype) + ", expected BF16, F16 or F32");
    Shape(*t, shape, &ok);
    if (ok) AddPlain(*t);
  }

  void DiscoverSites() {
    std::set<std::string> modules;
    for (const auto& [name, place] : view_.tensors) {
      const bool scale = name.ends_with(names_.scales) || name.ends_with(names_.global);
      if (scale || (name.ends_with(names_.codes) && DTypeBytes(place.tensor->dtype) == 1)) modules.insert(ModuleOf(name));
    }
    for (const std::string& module : modules) {
      SiteView site;
      site.module = module;
      site.unit = LayerOf(module);
      view_.sites.push_back(std::move(site));
    }
  }

  void DiscoverPlain() {
    for (const auto& [name, place] : view_.tensors) {
      if (claimed_.contains(name) || !(name.ends_with(".weight") || name.ends_with(".bias"))) continue;
      if (name.ends_with(".weight") && claimed_.contains(ModuleOf(name) + names_.codes)) continue;   // beside a packed one: a leftover
      claimed_.insert(name);
      if (IsFloat(place.tensor->dtype)) {
        AddPlain(*place.tensor);
      } else {
        view_.sink.Add("V042", name, std::string("dtype is ") + DTypeName(place.tensor->dtype) + ", expected BF16, F16 or F32");
      }
    }
  }

  void CheckLayerCount() {
    if (!view_.config.layers) return;
    std::set<std::string> layers;
    for (const auto& [name, place] : view_.tensors) {
      if (name.starts_with("model.layers.")) layers.insert(LayerOf(name));
    }
    if (layers.empty()) return;
    for (uint64_t i = 0; i < *view_.config.layers; ++i) {
      const std::string layer = "model.layers." + std::to_string(i);
      if (!layers.contains(layer)) view_.sink.Add("V040", layer, "config.json promises the layer, no tensor of it is stored");
    }
  }

  // ---- one quantized linear ----

  // A float matrix where codes belong. Unless it is excluded, engines cast it to bytes: CheckExcludes says so.
  bool IsPlainInstead(SiteView* site) {
    if (site->weight == nullptr) site->weight = view_.Find(site->module + ".weight");   // where codes have another name
    if (site->weight == nullptr || !IsFloat(site->weight->dtype) || site->weight->shape.size() != 2) return false;
    claimed_.insert(site->weight->name);
    AddPlain(*site->weight);
    if (!view_.config.understood || view_.config.Excludes(site->module)) {
      view_.sink.Add("V042", site->weight->name, std::string("dtype is ") + DTypeName(site->weight->dtype) +
                                                     ", expected U8: this recipe quantizes the linear");
    } else {
      for (const char* part : {names_.codes, names_.scales, names_.global, names_.input}) claimed_.insert(site->module + part);
    }
    site->weight = nullptr;
    return true;
  }

  void CheckScalar(const TensorInfo& t, bool* ok) {
    Type(t, DType::kF32, ok);
    if (view_.config.layout == OutputLayout::kCompressedTensors) {
      Shape(t, {1}, ok);
    } else if (t.shape == std::vector<uint64_t>{1}) {
      view_.sink.Add("V044", t.name, "shape is [1], Model-Optimizer writes []; dense linears load, experts have not always");
    } else {
      Shape(t, {}, ok);
    }
  }

  void CheckMatrixShapes(SiteView* site, bool* ok) {
    const TensorInfo& w = *site->weight;
    const bool known = site->rows != 0;
    if (w.shape.size() != 2 || w.shape[0] == 0 || w.shape[1] == 0 || (!known && w.shape[1] % 8 != 0)) {
      *ok = false;
      view_.sink.Add("V043", w.name, "shape is " + ShapeText(w.shape) + ", expected [out, in/2] with in a multiple of 16");
      return;
    }
    if (!known) {
      site->rows = w.shape[0];
      site->cols = w.shape[1] * 2;
    }
    Shape(w, {site->rows, site->cols / 2}, ok);
    if (site->scale != nullptr) Shape(*site->scale, {site->rows, site->cols / 16}, ok);
  }

  void CheckSite(SiteView* site) {
    site->weight = view_.Find(site->module + names_.codes);
    if (IsPlainInstead(site)) return;
    site->weight = Require(site->module + names_.codes);
    site->scale = Require(site->module + names_.scales);
    site->scale2 = Require(site->module + names_.global);
    if (WeightOnly()) {
      if (view_.Find(site->module + names_.input) != nullptr) {
        view_.sink.Add("V041", Claim(site->module + names_.input)->name, "a weight-only model has no input scales");
      }
    } else {
      site->input = Require(site->module + names_.input);
    }
    bool ok = site->weight != nullptr && site->scale != nullptr && site->scale2 != nullptr;
    if (site->weight != nullptr) Type(*site->weight, DType::kU8, &ok);
    if (site->scale != nullptr) Type(*site->scale, DType::kF8E4M3, &ok);
    if (site->weight != nullptr) CheckMatrixShapes(site, &ok);
    if (site->scale2 != nullptr) CheckScalar(*site->scale2, &ok);
    bool input_ok = true;
    if (site->input != nullptr) CheckScalar(*site->input, &input_ok);
    if (!input_ok) site->input = nullptr;
    site->readable = ok;
    if (ok && (site->cols % 64 != 0 || site->rows % 32 != 0)) {
      view_.sink.Add("V048", site->module, ShapeText({site->rows, site->cols}) +
                                               ": kernels pad the outputs to 32, and Marlin and GGUF want inputs in multiples of 64");
    }
  }

  // ---- what nobody claimed ----

  void JudgeLeftovers() {
    for (const auto& [name, place] : view_.tensors) {
      if (claimed_.contains(name)) continue;
      if (name == "lm_head.weight" && IsTied() && IsFloat(place.tensor->dtype)) {
        AddPlain(*place.tensor);
        view_.plain.back().tied_copy = true;
      } else if (name.ends_with(".rotary_emb.inv_freq")) {
        view_.sink.Add("V049", name, "loaders compute this buffer and skip the stored one");
      } else if (name.ends_with(".k_scale") || name.ends_with(".v_scale")) {
        if (!view_.config.kv_declared) view_.sink.Add("V032", name, "a KV cache scale, but no config declares a quantized KV cache");
      } else if (view_.options.expected != nullptr || LooksQuantized(name) || claimed_.contains(ModuleOf(name) + names_.codes)) {
        view_.sink.Add("V041", name, "nothing in the model asks for this tensor; vLLM stops at it (\"no module or parameter named\")");
      }
    }
  }

  static bool LooksQuantized(const std::string& name) {
    for (const char* end : {".input_scale", ".weight_scale", ".weight_scale_2", ".pre_quant_scale", ".weight_zero_point", ".weight_packed",
                            ".weight_global_scale", ".input_global_scale", ".weight_g_idx", ".qweight", ".qzeros", "_amax"}) {
      if (name.ends_with(end)) return true;
    }
    return false;
  }

  // ---- the exclude list against what is stored ----

  struct Linear {
    std::string module;
    bool quantized = false;
    bool excluded = false;
  };

  void CheckExcludes() {
    std::map<std::string, std::vector<Linear>> groups;  // engines decide once for a fused matrix
    const auto add = [&](const std::string& module, bool quantized) {
      const auto fused = FusedNameOf(module);
      const std::string key = fused ? fused->parent + fused->set : module;
      groups[key].push_back({module, quantized, view_.config.Excludes(module)});
    };
    for (const SiteView& site : view_.sites) {
      if (site.weight != nullptr) add(site.module, true);
    }
    for (const PlainView& plain : view_.plain) {
      if (plain.kind == PlainView::Kind::kLinear) add(ModuleOf(plain.tensor->name), false);
    }
    for (const auto& [key, linears] : groups) JudgeGroup(key, linears);
  }

  void JudgeGroup(const std::string& key, const std::vector<Linear>& linears) {
    const size_t excluded = std::count_if(linears.begin(), linears.end(), [](const Linear& l) { return l.excluded; });
    if (excluded != 0 && excluded != linears.size()) {
      std::string names;
      for (const Linear& l : linears) names += (names.empty() ? "" : ", ") + l.module + (l.excluded ? " (excluded)" : "");
      view_.sink.Add("V034", key, "engines fuse " + names + ": exclude all of them or none");
      return;
    }
    for (const Linear& l : linears) {
      if (l.excluded && l.quantized) {
        view_.sink.Add("V033", l.module, "the exclude list names it, but its weight is quantized: vLLM expects a plain matrix here");
      } else if (!l.excluded && !l.quantized) {
        view_.sink.Add("V035", l.module, "its weight is not quantized, but nothing in the exclude list matches: engines would take its numbers for packed codes");
      }
    }
  }

  OutputView& view_;
  const SiteNames& names_;
  std::set<std::string> claimed_;
};

}  // namespace

std::optional<FusedName> FusedNameOf(const std::string& module) {
  static constexpr struct { const char* leaf; const char* set; } kFused[] = {
      {"q_proj", "qkv_proj"}, {"k_proj", "qkv_proj"}, {"v_proj", "qkv_proj"}, {"gate_proj", "gate_up_proj"}, {"up_proj", "gate_up_proj"},
      {"w1", "w13"}, {"w3", "w13"}, {"q_a_proj", "fused_qkv_a_proj"}, {"kv_a_proj_with_mqa", "fused_qkv_a_proj"}};
  const size_t dot = module.rfind('.');
  if (dot == std::string::npos) return std::nullopt;
  for (const auto& f : kFused) {
    if (module.compare(dot + 1, std::string::npos, f.leaf) == 0) return FusedName{f.set, module.substr(0, dot + 1)};
  }
  return std::nullopt;
}

std::string ShapeText(const std::vector<uint64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

Status CheckTensors(OutputView* view) {
  TensorChecker(view).Run();
  return OkStatus();
}

}  // namespace holdfast
