// SPDX-License-Identifier: Apache-2.0
//
// V020-V032, V037-V039: what config.json and hf_quant_config.json say. vLLM reads config.json and falls back to the other file;
// TensorRT-LLM reads hf_quant_config.json first. So both must be there and agree, but only the first can break vLLM. The second belongs to the
// layout of Model-Optimizer; compressed-tensors says everything in config.json.
#include <algorithm>
#include <set>

#include "export/verify/output_view.h"

namespace holdfast {
namespace {

constexpr char kConfig[] = "config.json";
constexpr char kHfQuant[] = "hf_quant_config.json";
constexpr uint64_t kConfigMax = 64u << 20;
constexpr char kMissing[] = "the file is missing";

// The document, or null when it is missing or not an object; why it is null goes to `problem`.
Result<Json> ReadObject(OutputView* view, const char* name, std::string* problem) {
  const Result<Bytes> text = view->fs.ReadFile(JoinPath(view->dir, name), kConfigMax);
  if (!text.ok()) {
    if (text.code() != ErrorCode::kNotFound && text.code() != ErrorCode::kResourceExhausted) return text.error();
    *problem = text.code() == ErrorCode::kNotFound ? kMissing : text.error().message;
    return Json();
  }
  const Result<Json> json = ParseJson(AsText(*text), name);
  if (!json.ok()) {
    *problem = json.error().message;
    return Json();
  }
  if (json->is_object()) return *json;
  *problem = "the document is not a JSON object";
  return Json();
}

const Json* Member(const Json& obj, const char* key) {
  if (!obj.is_object()) return nullptr;
  const auto it = obj.find(key);
  return it == obj.end() || it->is_null() ? nullptr : &*it;
}

std::string Text(const Json* value) { return value == nullptr ? "missing" : value->dump(-1, ' ', false, Json::error_handler_t::replace); }

bool IsSixteen(const Json* value) { return value != nullptr && value->is_number_integer() && *value == 16; }

// A list of strings, sorted; nullopt when it is anything else.
std::optional<std::vector<std::string>> Names(const Json* value) {
  if (value == nullptr || !value->is_array()) return std::nullopt;
  std::vector<std::string> names;
  for (const Json& one : *value) {
    if (!one.is_string()) return std::nullopt;
    names.push_back(one.get<std::string>());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool SoundArgs(const Json* args) {
  const Json* bits = args == nullptr ? nullptr : Member(*args, "num_bits");
  const Json* type = args == nullptr ? nullptr : Member(*args, "type");
  return bits != nullptr && *bits == 4 && type != nullptr && *type == "float";
}

// V027 and the group sizes inside the groups.
void CheckGroups(OutputView* view, const Json& q, bool weight_only) {
  const Json* groups = Member(q, "config_groups");
  if (groups == nullptr || !groups->is_object() || groups->empty()) {
    view->sink.Add("V027", kConfig, "quantization_config.config_groups is missing or empty; Model-Optimizer writes one group");
    return;
  }
  for (const auto& [name, group] : groups->items()) {
    const std::string where = "quantization_config.config_groups." + name;
    const Json* weights = Member(group, "weights");
    const Json* inputs = Member(group, "input_activations");
    if (!SoundArgs(weights)) view->sink.Add("V027", kConfig, where + ".weights is not 4-bit float");
    if (weight_only != (inputs == nullptr)) {
      view->sink.Add("V027", kConfig, where + (weight_only ? ".input_activations is there, but quant_algo is weight-only"
                                                           : ".input_activations is missing, but quant_algo is NVFP4"));
    } else if (inputs != nullptr && !SoundArgs(inputs)) {
      view->sink.Add("V027", kConfig, where + ".input_activations is not 4-bit float");
    }
    for (const Json* args : {weights, inputs}) {
      if (args == nullptr) continue;
      if (!IsSixteen(Member(*args, "group_size"))) {
        view->sink.Add("V025", kConfig, where + ": group_size is " + Text(Member(*args, "group_size")) + ", expected 16");
      }
    }
  }
}

void CheckExclude(OutputView* view, const Json& q, const char* file) {
  const Json* ignore = Member(q, "ignore");
  const Json* modules = Member(q, "exclude_modules");
  const auto names = Names(ignore != nullptr ? ignore : modules);
  if (!names) {
    view->sink.Add("V026", file, "the exclude list (ignore or exclude_modules) is missing or not a list of strings");
    return;
  }
  if (ignore != nullptr && modules != nullptr && Names(modules) != names) {
    view->sink.Add("V026", file, "ignore and exclude_modules differ; loaders of different versions read different ones");
    return;
  }
  view->config.exclude = *names;
  view->config.understood = true;
  if (!view->config.Excludes("lm_head")) {
    view->sink.Add("V028", file, "lm_head is not excluded: loaders refuse the model, tied or not; add \"lm_head\" to the list");
  }
}

// V024; true when the algorithm is one of ours.
bool CheckAlgo(OutputView* view, const Json* algo, const char* file) {
  if (algo != nullptr && (*algo == "NVFP4" || *algo == "W4A16_NVFP4")) {
    view->config.weight_only = *algo == "W4A16_NVFP4";
    return true;
  }
  view->sink.Add("V024", file, "quant_algo is " + Text(algo) + ", expected \"NVFP4\" or \"W4A16_NVFP4\"");
  return false;
}

// ---- compressed-tensors ----

// vLLM takes these arguments for NVFP4, and none else. Keys of the library 0.18: it refuses a config with any other.
void CheckCompressedArgs(OutputView* view, const Json& args, const std::string& where, bool inputs) {
  static const std::set<std::string> known = {"actorder", "block_structure", "dynamic", "group_size", "num_bits", "observer", "observer_kwargs",
                                              "scale_dtype", "strategy", "symmetric", "type", "zp_dtype"};
  const auto is = [&](const char* key, const Json& want) { return Member(args, key) != nullptr && *Member(args, key) == want; };
  const bool dynamic = inputs ? is("dynamic", "local") : Member(args, "dynamic") == nullptr || is("dynamic", false);
  if (!SoundArgs(&args) || !is("strategy", "tensor_group") || !is("symmetric", true) || !dynamic) {
    view->sink.Add("V027", kConfig, where + " is not 4-bit float, symmetric, of strategy tensor_group, " + (inputs ? "dynamic \"local\"" : "not dynamic"));
  }
  if (!IsSixteen(Member(args, "group_size"))) {
    view->sink.Add("V025", kConfig, where + ": group_size is " + Text(Member(args, "group_size")) + ", expected 16");
  }
  for (const auto& [key, value] : args.items()) {
    if (!known.contains(key)) view->sink.Add("V039", kConfig, where + "." + key + ": compressed-tensors refuses a config with keys that it does not know");
  }
  if (is("actorder", "group") || is("actorder", "dynamic")) {
    view->sink.Add("V039", kConfig, where + ".actorder is " + Text(Member(args, "actorder")) + ": vLLM refuses reordered columns");
  }
}

void CheckCompressedGroup(OutputView* view, const Json& group, const std::string& where) {
  static const std::set<std::string> known = {"format", "input_activations", "output_activations", "targets", "weights"};
  if (!group.is_object()) return view->sink.Add("V027", kConfig, where + " is not an object");
  for (const auto& [key, value] : group.items()) {
    if (!known.contains(key)) view->sink.Add("V039", kConfig, where + "." + key + ": compressed-tensors refuses a config with keys that it does not know");
  }
  if (const Json* format = Member(group, "format"); format != nullptr && *format != kCompressedFormat) {
    view->sink.Add("V037", kConfig, where + ".format is " + Text(format) + ", expected \"" + kCompressedFormat + "\"");
  }
  if (Member(group, "targets") == nullptr || *Member(group, "targets") != Json::array({"Linear"})) {
    view->sink.Add("V027", kConfig, where + ".targets is " + Text(Member(group, "targets")) + ", expected [\"Linear\"]: every linear that is not ignored");
  }
  if (Member(group, "output_activations") != nullptr) view->sink.Add("V027", kConfig, where + ".output_activations is there; NVFP4 quantizes none");
  const Json* weights = Member(group, "weights");
  const Json* inputs = Member(group, "input_activations");
  if (weights == nullptr || !weights->is_object()) {
    view->sink.Add("V027", kConfig, where + ".weights is missing");
  } else {
    CheckCompressedArgs(view, *weights, where + ".weights", false);
  }
  if (inputs != nullptr && !inputs->is_object()) {
    view->sink.Add("V027", kConfig, where + ".input_activations is neither an object nor null");
  } else if (inputs != nullptr) {
    CheckCompressedArgs(view, *inputs, where + ".input_activations", true);
  }
  view->config.weight_only = inputs == nullptr;
}

void CheckCompressedConfig(OutputView* view, const Json& q) {
  if (const Json* format = Member(q, "format"); format == nullptr || *format != kCompressedFormat) {
    view->sink.Add("V037", kConfig, "quantization_config.format is " + Text(format) + ", expected \"" + kCompressedFormat + "\"");
  }
  if (const Json* status = Member(q, "quantization_status"); status == nullptr || *status != "compressed") {
    view->sink.Add("V038", kConfig, "quantization_config.quantization_status is " + Text(status) + ", expected \"compressed\": transformers would leave the weights out in silence");
  }
  for (const char* key : {"sparsity_config", "transform_config"}) {
    const Json* value = Member(q, key);
    if (value != nullptr && !value->empty()) view->sink.Add("V039", kConfig, std::string("quantization_config.") + key + " is not empty");
  }
  const Json* groups = Member(q, "config_groups");
  if (groups == nullptr || !groups->is_object() || groups->size() != 1) {
    view->sink.Add("V027", kConfig, "quantization_config.config_groups is not one group: one scheme for all linears");
  } else {
    CheckCompressedGroup(view, *groups->begin(), "quantization_config.config_groups." + groups->begin().key());
  }
  CheckExclude(view, q, kConfig);
  view->config.kv_declared = Member(q, "kv_cache_scheme") != nullptr;
}

// Also where quant_method is missing or wrong, if the rest is in no other way Model-Optimizer's.
bool IsCompressed(const Json& q) {
  const Json* method = Member(q, "quant_method");
  if (method != nullptr && *method == kCompressedMethod) return true;
  return (method == nullptr || *method != "modelopt") && Member(q, "format") != nullptr && Member(q, "quant_algo") == nullptr;
}

void CheckQuantizationConfig(OutputView* view, const Json& q) {
  const Json* method = Member(q, "quant_method");
  if (IsCompressed(q)) {
    view->config.layout = OutputLayout::kCompressedTensors;
    if (method == nullptr || *method != kCompressedMethod) {
      view->sink.Add("V023", kConfig, "quantization_config.quant_method is " + Text(method) + ", expected \"" + kCompressedMethod + "\"");
    }
    return CheckCompressedConfig(view, q);
  }
  if (method == nullptr || *method != "modelopt") {
    view->sink.Add("V023", kConfig, "quantization_config.quant_method is " + Text(method) + ", expected \"modelopt\"");
  }
  const bool algo = CheckAlgo(view, Member(q, "quant_algo"), kConfig);
  if (const Json* top = Member(q, "group_size"); top != nullptr && !IsSixteen(top)) {
    view->sink.Add("V025", kConfig, "quantization_config.group_size is " + Text(top) + ", expected 16");
  }
  if (algo) CheckGroups(view, q, view->config.weight_only);
  CheckExclude(view, q, kConfig);
  view->config.kv_declared = Member(q, "kv_cache_scheme") != nullptr;
  for (const char* code : {"V023", "V024", "V025", "V026", "V027"}) {
    if (view->sink.Has(code)) return;
  }
  const auto parsed = ParseConfigQuant(Json{{"quantization_config", q}}, kConfig);
  if (!parsed.ok()) view->sink.Add("V029", kConfig, parsed.error().message);
}

// V030: the nested form needs three keys, or vLLM and TensorRT-LLM refuse it. Null when the file cannot be used.
const Json* CheckHfQuantConfig(OutputView* view, const Json& hf, const std::string& problem) {
  if (hf.is_null()) {
    view->sink.Add("V030", kHfQuant, problem + "; vLLM reads config.json, TensorRT-LLM wants this file");
    return nullptr;
  }
  const Json* q = Member(hf, "quantization");
  if (q == nullptr || !q->is_object()) {
    view->sink.Add("V030", kHfQuant, "field \"quantization\" is missing");
    return nullptr;
  }
  for (const char* key : {"quant_algo", "kv_cache_quant_algo", "group_size", "exclude_modules"}) {
    if (!q->contains(key)) view->sink.Add("V030", kHfQuant, std::string("field quantization.") + key + " is missing");
  }
  return q;
}

void CompareConfigs(OutputView* view, const Json& q, const Json& hf) {
  const auto differ = [&](const char* field, const std::string& a, const std::string& b) {
    view->sink.Add("V031", kHfQuant, std::string(field) + " is " + b + ", config.json says " + a);
  };
  if (Text(Member(q, "quant_algo")) != Text(Member(hf, "quant_algo"))) {
    differ("quant_algo", Text(Member(q, "quant_algo")), Text(Member(hf, "quant_algo")));
  }
  if (!IsSixteen(Member(hf, "group_size"))) differ("group_size", "16", Text(Member(hf, "group_size")));
  const Json* ignore = Member(q, "ignore") != nullptr ? Member(q, "ignore") : Member(q, "exclude_modules");
  if (Names(ignore) != Names(Member(hf, "exclude_modules"))) differ("the exclude list", Text(ignore), Text(Member(hf, "exclude_modules")));
  const bool kv = Member(hf, "kv_cache_quant_algo") != nullptr;
  if (kv != (Member(q, "kv_cache_scheme") != nullptr)) {
    differ("kv_cache_quant_algo", Text(Member(q, "kv_cache_scheme")), Text(Member(hf, "kv_cache_quant_algo")));
  }
}

// With hf_quant_config.json alone vLLM loads the model from that, so it is judged by the same rules.
void CheckAlone(OutputView* view, const Json& hf) {
  view->sink.Add("V022", kConfig, "quantization_config is missing; vLLM falls back to hf_quant_config.json, transformers does not");
  CheckAlgo(view, Member(hf, "quant_algo"), kHfQuant);
  if (!IsSixteen(Member(hf, "group_size"))) {
    view->sink.Add("V025", kHfQuant, "quantization.group_size is " + Text(Member(hf, "group_size")) + ", expected 16");
  }
  CheckExclude(view, hf, kHfQuant);
  view->config.kv_declared = Member(hf, "kv_cache_quant_algo") != nullptr;
}

}  // namespace

Status CheckConfigs(OutputView* view) {
  std::string problem, hf_problem;
  HOLDFAST_ASSIGN(const Json config, ReadObject(view, kConfig, &problem));
  HOLDFAST_ASSIGN(const Json hf_file, ReadObject(view, kHfQuant, &hf_problem));
  if (config.is_null()) view->sink.Add("V020", kConfig, problem + "; no engine loads a model without it");
  const Json* text = Member(config, "text_config");
  const auto find = [&](const char* key) {
    const Json* top = Member(config, key);
    return top != nullptr || text == nullptr ? top : Member(*text, key);
  };
  if (const Json* tied = find("tie_word_embeddings"); tied != nullptr && tied->is_boolean()) view->config.tied = tied->get<bool>();
  if (const Json* n = find("num_hidden_layers"); n != nullptr && n->is_number_unsigned()) view->config.layers = n->get<uint64_t>();

  const Json* q = find("quantization_config");
  if (q != nullptr && q->is_object() && IsCompressed(*q)) {
    CheckQuantizationConfig(view, *q);
    if (hf_problem != kMissing) view->sink.Add("V031", kHfQuant, "the file is there: engines that read it first look for Model-Optimizer's tensors");
    return OkStatus();
  }
  const Json* hf = CheckHfQuantConfig(view, hf_file, hf_problem);
  if (q != nullptr && q->is_object()) {
    CheckQuantizationConfig(view, *q);
    if (hf != nullptr) CompareConfigs(view, *q, *hf);
  } else if (hf != nullptr) {
    CheckAlone(view, *hf);
  } else {
    view->sink.Add("V021", kConfig, "neither config.json nor hf_quant_config.json says how the model is quantized");
  }
  return OkStatus();
}

}  // namespace holdfast
