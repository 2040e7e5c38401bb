// SPDX-License-Identifier: Apache-2.0
#include "export/merge/metadata.h"

#include <set>

#include "export/format/hf_config.h"

#ifndef HOLDFAST_VERSION
#define HOLDFAST_VERSION "unknown"
#endif

namespace holdfast {
namespace {

constexpr char kConfig[] = "config.json";
constexpr char kHfQuantConfig[] = "hf_quant_config.json";
constexpr char kGenerationConfig[] = "generation_config.json";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kSingleFile[] = "model.safetensors";

// Files of the source that never go into the output as they are: we write our own, or they describe other weights.
bool IsRewritten(const std::string& name) {
  static const std::set<std::string> names = {kConfig, kHfQuantConfig, kIndex, kProvenanceFile,
                                              kManifestFile};
  return names.contains(name) || name.ends_with(".safetensors");
}

// A relative path that stays inside the directory.
bool IsSafeName(const std::string& name) {
  if (name.empty() || name.front() == '/' || name.find('\0') != std::string::npos ||
      name.find('\n') != std::string::npos)
    return false;
  size_t begin = 0;
  for (;;) {
    const size_t slash = name.find('/', begin);
    const std::string part = name.substr(begin, slash == std::string::npos ? slash : slash - begin);
    if (part.empty() || part == "." || part == "..") return false;
    if (slash == std::string::npos) return true;
    begin = slash + 1;
  }
}

Bytes ToBytes(const std::string& text) { return {text.begin(), text.end()}; }

Result<Bytes> ReadSidecar(FileSystem& fs, const JobSpec& job, const SourceFile& file) {
  const std::string path = JoinPath(job.source, file.name);
  auto bytes = fs.ReadFile(path);
  if (bytes.code() == ErrorCode::kNotFound) {
    return InvalidArgument(
        path +
        ": was there when the job began and is gone now. Put it back, then run `jobctl resume`, or what you typed, again");
  }
  if (!bytes.ok()) return bytes.error();
  if (!file.sha256.IsZero() && Sha256(*bytes) != file.sha256) {
    return InvalidArgument(path + ": changed since the job began (SHA-256 " + Sha256(*bytes).Hex() +
                           ", then " + file.sha256.Hex() +
                           "). Restore the file, then run `jobctl resume`, or what you typed, again");
  }
  return bytes;
}

// As transformers derives it when a model has none.
Result<std::string> MakeGenerationConfig(const Bytes& config_text) {
  HOLDFAST_ASSIGN(const Json config, ParseJson(AsText(config_text), kConfig));
  OrderedJson out = {{"_from_model_config", true}};
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}) {
    for (const Json* level :
         {&config, config.contains("text_config") ? &config["text_config"] : nullptr}) {
      if (level == nullptr || !level->is_object() || !level->contains(key) ||
          (*level)[key].is_null() || out.contains(key))
        continue;
      out[key] = (*level)[key];
    }
  }
  return out.dump(2) + "\n";
}

std::string MakeIndex(const OutputPlan& output) {
  std::vector<std::pair<std::string, std::string>> weight_map;
  for (const OutputFile& f : output.files) {
    for (const TensorInfo& t : f.layout.tensors) weight_map.emplace_back(t.name, f.name);
  }
  return MakeIndexJson(output.total_parameters, output.total_size, weight_map);
}

OrderedJson DescribeFiles(const std::vector<SourceFile>& files) {
  OrderedJson list = OrderedJson::array();
  for (const SourceFile& f : files) {
    OrderedJson entry = {{"name", f.name}, {"size", f.size}};
    if (!f.sha256.IsZero()) entry["sha256"] = f.sha256.Hex();
    if (!f.header_sha256.IsZero()) entry["header_sha256"] = f.header_sha256.Hex();
    list.push_back(entry);
  }
  return list;
}

// Where the output comes from. A function of source, calibration and recipe: two jobs over the same inputs write the same bytes, so
// the job's uuid has no place here.
std::string MakeProvenance(const JobSpec& job, OutputLayout layout, const std::string& numerics,
                           const std::vector<uint32_t>& omitted) {
  OrderedJson provenance = {
      {"holdfast_version", HOLDFAST_VERSION},
      {"recipe", job.recipe},
      {"layout", LayoutName(layout)},
      {"architecture", job.architecture},
      {"numerics", numerics},
      {"calibration",
       {{"samples", job.samples - omitted.size()},
        {"seq_len", job.seq_len},
        {"file_sha256", job.calib_sha256.Hex()},
        {"tokens_sha256", job.tokens_sha256.Hex()}}},
      {"source",
       {{"weights", DescribeFiles(job.weights)}, {"sidecars", DescribeFiles(job.sidecars)}}}};
  if (!omitted.empty()) provenance["calibration"]["left_out"] = omitted;  // counted from 0
  return provenance.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace

Result<std::map<std::string, Bytes>> MakeMetadata(FileSystem& fs, const JobSpec& job,
                                                  const std::string& numerics,
                                                  const std::vector<uint32_t>& omitted,
                                                  const Plan& plan, const OutputPlan& output) {
  std::map<std::string, Bytes> files;
  const QuantDescription quant = DescribeQuant(plan, output.layout);
  for (const SourceFile& sidecar : job.sidecars) {
    if (!IsSafeName(sidecar.name))
      return InvalidArgument("the job names a sidecar \"" + sidecar.name +
                             "\", which is no path inside the model directory");
    if (IsRewritten(sidecar.name) && sidecar.name != kConfig) continue;
    HOLDFAST_ASSIGN(Bytes bytes, ReadSidecar(fs, job, sidecar));
    files[sidecar.name] = std::move(bytes);
  }
  if (!files.contains(kConfig))
    return InvalidArgument(job.source + ": the job pinned no " + kConfig);
  if (!files.contains(kGenerationConfig)) {
    HOLDFAST_ASSIGN(const std::string generation, MakeGenerationConfig(files[kConfig]));
    files[kGenerationConfig] = ToBytes(generation);
  }
  HOLDFAST_ASSIGN(const std::string config,
                  MakeConfigJson(std::string(AsText(files[kConfig])), quant));
  files[kConfig] = ToBytes(config);
  if (output.layout == OutputLayout::kModelopt) files[kHfQuantConfig] = ToBytes(MakeHfQuantConfigJson(quant));
  if (output.files.size() != 1 || output.files[0].name != kSingleFile)
    files[kIndex] = ToBytes(MakeIndex(output));
  files[kProvenanceFile] = ToBytes(MakeProvenance(job, output.layout, numerics, omitted));
  return files;
}

std::string MakeManifest(const std::map<std::string, Digest>& files) {
  std::string out;
  for (const auto& [name, digest] : files) out += digest.Hex() + "  " + name + "\n";
  return out;
}

Result<std::map<std::string, Digest>> ParseManifest(std::string_view text,
                                                    const std::string& path) {
  constexpr size_t kHex = 64;
  std::map<std::string, Digest> files;
  for (size_t line = 1; !text.empty(); ++line) {
    const size_t end = text.find('\n');
    const std::string_view row = text.substr(0, end);
    Digest digest;
    const bool sound = end != std::string_view::npos && row.size() > kHex + 2 &&
                       row.substr(kHex, 2) == "  " && Digest::FromHex(row.substr(0, kHex), &digest);
    if (!sound || !files.emplace(row.substr(kHex + 2), digest).second) {
      return Corrupt(path + ": line " + std::to_string(line) + " is not \"<sha256>  <name>\"");
    }
    text.remove_prefix(end + 1);
  }
  return files;
}

}  // namespace holdfast
