// SPDX-License-Identifier: Apache-2.0
#include "export/format/hf_config.h"

#include <algorithm>
#include <set>

#include "ledger/records/records.h"

namespace holdfast {
namespace {

// Loaders test for this name; where the files really come from stands in holdfast.json (docs/adr/0006-producer-name.md).
constexpr char kProducerName[] = "modelopt";
constexpr char kProducerVersion[] = "0.47.0";
constexpr char kQuantKey[] = "quantization_config";
// The library whose form of the config this is (docs/adr/0030-two-layouts.md).
constexpr char kCompressedVersion[] = "0.18.0";

// A tied model has the head as a module, though not as a tensor. Embeddings are no linears.
std::vector<std::string> PlainLinears(const Plan& plan) {
  constexpr std::string_view kWeight = ".weight";
  std::set<std::string> names = {"lm_head"};
  for (const UnitPlan& unit : plan.units) {
    if (unit.id >= plan.layers) continue;
    std::set<std::string> quantized;
    for (const SitePlan& s : unit.sites) quantized.insert(s.module);
    for (const TensorPlan& t : unit.tensors) {
      if (t.shape.size() != 2 || !t.name.ends_with(kWeight)) continue;
      const std::string module = t.name.substr(0, t.name.size() - kWeight.size());
      if (!quantized.contains(module)) names.insert(module);
    }
  }
  return {names.begin(), names.end()};
}

OrderedJson Producer() { return {{"name", kProducerName}, {"version", kProducerVersion}}; }
const char* QuantAlgo(const QuantDescription& q) {
  return q.input_activations ? "NVFP4" : "W4A16_NVFP4";
}

// Keys by name, as the library writes them.
OrderedJson CompressedArgs(OrderedJson dynamic, const char* observer) {
  return {{"actorder", nullptr}, {"block_structure", nullptr}, {"dynamic", std::move(dynamic)}, {"group_size", 16}, {"num_bits", 4},
          {"observer", observer}, {"observer_kwargs", OrderedJson::object()}, {"scale_dtype", "torch.float8_e4m3fn"},
          {"strategy", "tensor_group"}, {"symmetric", true}, {"type", "float"}, {"zp_dtype", nullptr}};
}

OrderedJson CompressedConfig(const QuantDescription& q) {
  OrderedJson group = OrderedJson::object();
  group["format"] = kCompressedFormat;
  group["input_activations"] = q.input_activations ? CompressedArgs("local", "static_minmax") : OrderedJson();
  group["output_activations"] = nullptr;
  group["targets"] = OrderedJson::array({"Linear"});
  group["weights"] = CompressedArgs(false, "memoryless_minmax");
  return {{"config_groups", {{"group_0", group}}}, {"format", kCompressedFormat}, {"global_compression_ratio", nullptr}, {"ignore", q.exclude},
          {"kv_cache_scheme", nullptr}, {"quant_method", kCompressedMethod}, {"quantization_status", "compressed"},
          {"sparsity_config", OrderedJson::object()}, {"transform_config", OrderedJson::object()}, {"version", kCompressedVersion}};
}

OrderedJson QuantizationConfig(const QuantDescription& q) {
  if (q.layout == OutputLayout::kCompressedTensors) return CompressedConfig(q);
  const OrderedJson four_bits = {
      {"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", 16}};
  OrderedJson group = OrderedJson::object();
  if (q.input_activations) group["input_activations"] = four_bits;
  group["weights"] = four_bits;
  group["targets"] = OrderedJson::array({"Linear"});
  return {{"config_groups", {{"group_0", group}}},
          {"ignore", q.exclude},
          {"quant_algo", QuantAlgo(q)},
          {"producer", Producer()},
          {"quant_method", "modelopt"}};
}

// Prints a valid JSON text anew with indentation, every scalar spelt as it was: no number passes through a double.
class Reindenter {
 public:
  Reindenter(std::string_view text, int indent) : text_(text), indent_(indent) {}

  // The members of the top-level object, without `drop`, each as "key": value.
  std::vector<std::string> Members(std::string_view drop) {
    std::vector<std::string> members;
    Skip();
    ++at_;  // {
    for (Skip(); text_[at_] != '}'; Skip()) {
      const std::string key = Scalar();
      Skip();
      ++at_;  // :
      const std::string value = Value(1);
      if (Json::parse(key).get<std::string>() != drop) members.push_back(key + ": " + value);
      Skip();
      if (text_[at_] == ',') ++at_;
    }
    return members;
  }

 private:
  void Skip() {
    while (at_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }
  std::string Scalar() {
    const size_t begin = at_;
    if (text_[at_] == '"') {
      for (++at_; text_[at_] != '"'; ++at_) at_ += text_[at_] == '\\';
      ++at_;
    } else {
      while (at_ < text_.size() &&
             std::string_view(",]} \t\r\n").find(text_[at_]) == std::string_view::npos)
        ++at_;
    }
    return std::string(text_.substr(begin, at_ - begin));
  }
  std::string Value(int depth) {
    Skip();
    const char open = text_[at_];
    if (open != '{' && open != '[') return Scalar();
    const char close = open == '{' ? '}' : ']';
    ++at_;
    std::string out(1, open);
    for (Skip(); text_[at_] != close; Skip()) {
      if (out.size() > 1) out += ',';
      NewLine(depth + 1, &out);
      if (open == '{') {
        out += Scalar() + ": ";
        Skip();
        ++at_;  // :
      }
      out += Value(depth + 1);
      Skip();
      if (text_[at_] == ',') ++at_;
    }
    ++at_;
    if (out.size() > 1) NewLine(depth, &out);
    out += close;
    return out;
  }
  void NewLine(int depth, std::string* out) const {
    out->append("\n").append(static_cast<size_t>(indent_ * depth), ' ');
  }

  std::string_view text_;
  int indent_;
  size_t at_ = 0;
};

std::string AsciiJson(const std::string& text) {
  return Json(text).dump(-1, ' ', /*ensure_ascii=*/true);
}

Result<std::vector<std::string>> StringList(const Json& obj, const char* key,
                                            const std::string& what) {
  std::vector<std::string> out;
  const auto it = obj.find(key);
  if (it == obj.end() || it->is_null()) return out;
  if (!it->is_array()) return InvalidArgument(what + ": field \"" + key + "\" is not a list");
  for (const Json& e : *it) {
    if (!e.is_string())
      return InvalidArgument(what + ": field \"" + key + "\" holds something that is not a string");
    out.push_back(e.get<std::string>());
  }
  return out;
}

// A string or "" when absent; wrong types are errors.
Result<std::string> OptionalString(const Json& obj, const char* key, const std::string& what) {
  if (!obj.contains(key) || obj[key].is_null()) return std::string();
  return GetString(obj, key, what);
}

// Whether any group quantizes activations.
bool HasInputs(const Json& quant) {
  const auto groups = quant.find("config_groups");
  if (groups == quant.end() || !groups->is_object()) return false;
  return std::any_of(groups->begin(), groups->end(), [](const Json& group) {
    return group.is_object() && group.contains("input_activations") && !group["input_activations"].is_null();
  });
}

// config_groups: the group size of the first group's weights that has one.
uint64_t GroupSize(const Json& quant) {
  const auto own = quant.find("group_size");
  if (own != quant.end() && own->is_number_unsigned()) return own->get<uint64_t>();
  const auto groups = quant.find("config_groups");
  if (groups == quant.end() || !groups->is_object()) return 0;
  for (const Json& group : *groups) {
    if (!group.is_object() || !group.contains("weights") || !group["weights"].is_object()) continue;
    const auto size = group["weights"].find("group_size");
    if (size != group["weights"].end() && size->is_number_unsigned()) return size->get<uint64_t>();
  }
  return 0;
}

}  // namespace

QuantDescription DescribeQuant(const Plan& plan, OutputLayout layout) {
  return {.input_activations = plan.input_scales, .exclude = layout == OutputLayout::kModelopt ? plan.ignore : PlainLinears(plan), .layout = layout};
}

Result<std::string> MakeConfigJson(const std::string& source_text, const QuantDescription& q) {
  HOLDFAST_ASSIGN(const Json parsed, ParseJson(source_text, "config.json"));
  if (!parsed.is_object()) return InvalidArgument("config.json: not a JSON object");
  constexpr int kIndent = 4;
  std::vector<std::string> members = Reindenter(source_text, kIndent).Members(kQuantKey);
  const OrderedJson wrapped = {{kQuantKey, QuantizationConfig(q)}};
  for (const std::string& m : Reindenter(wrapped.dump(), kIndent).Members("")) members.push_back(m);
  std::string out = "{";
  for (size_t i = 0; i < members.size(); ++i) out += (i ? ",\n    " : "\n    ") + members[i];
  return out + "\n}";
}

std::string MakeHfQuantConfigJson(const QuantDescription& q) {
  const OrderedJson config = {{"producer", Producer()},
                              {"quantization",
                               {{"quant_algo", QuantAlgo(q)},
                                {"kv_cache_quant_algo", nullptr},
                                {"group_size", 16},
                                {"exclude_modules", q.exclude}}}};
  return config.dump(4);
}

std::string MakeIndexJson(uint64_t total_parameters, uint64_t total_size,
                          const std::vector<std::pair<std::string, std::string>>& weight_map) {
  auto sorted = weight_map;
  std::sort(sorted.begin(), sorted.end());
  std::string out =
      "{\n  \"metadata\": {\n    \"total_parameters\": " + std::to_string(total_parameters) +
      ",\n    \"total_size\": " + std::to_string(total_size) + "\n  },\n  \"weight_map\": {";
  const char* comma = "\n    ";
  for (const auto& [name, file] : sorted) {
    out += comma + AsciiJson(name) + ": " + AsciiJson(file);
    comma = ",\n    ";
  }
  return out + "\n  }\n}\n";
}

Result<ParsedQuantConfig> ParseConfigQuant(const Json& config, const std::string& what) {
  if (!config.is_object() || !config.contains(kQuantKey))
    return NotFound(what + ": field \"" + kQuantKey + "\" is missing");
  HOLDFAST_ASSIGN(const Json* quant, GetObject(config, kQuantKey, what));
  const std::string where = what + ": " + kQuantKey;
  ParsedQuantConfig out;
  HOLDFAST_ASSIGN(out.quant_method, OptionalString(*quant, "quant_method", where));
  HOLDFAST_ASSIGN(out.quant_algo, OptionalString(*quant, "quant_algo", where));
  if (out.quant_method == kCompressedMethod) {
    out.layout = OutputLayout::kCompressedTensors;
    out.quant_algo = HasInputs(*quant) ? "NVFP4" : "W4A16_NVFP4";
  }
  out.group_size = GroupSize(*quant);
  HOLDFAST_ASSIGN(
      out.exclude,
      StringList(*quant, quant->contains("ignore") ? "ignore" : "exclude_modules", where));
  return out;
}

Result<ParsedQuantConfig> ParseHfQuantConfig(const Json& hf_quant, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* quant, GetObject(hf_quant, "quantization", what));
  ParsedQuantConfig out;
  if (hf_quant.contains("producer") && hf_quant["producer"].is_object()) {
    HOLDFAST_ASSIGN(out.quant_method,
                    OptionalString(hf_quant["producer"], "name", what + ": producer"));
  }
  HOLDFAST_ASSIGN(out.quant_algo, OptionalString(*quant, "quant_algo", what + ": quantization"));
  out.group_size = GroupSize(*quant);
  HOLDFAST_ASSIGN(out.exclude, StringList(*quant, "exclude_modules", what + ": quantization"));
  return out;
}

}  // namespace holdfast
