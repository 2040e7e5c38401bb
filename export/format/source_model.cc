// SPDX-License-Identifier: Apache-2.0
//
// SourceModel: finds the weights of a model directory and makes sure that index and files agree, in both directions.
#include <optional>
#include <set>

#include "export/format/safetensors.h"

namespace holdfast {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

Error NoWeights(FileSystem& fs, const std::string& dir) {
  std::string message = dir + ": no weights found; looked for " + kSingle + " and " + kIndex;
  const auto names = fs.List(dir);
  if (!names.ok()) return Annotate(names.error(), message);
  for (const std::string& name : *names) {
    const bool torch_file =
        name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth");
    if (torch_file) {
      return InvalidArgument(
          message + ". " + name +
          " is a PyTorch file, which can run code when it is opened: convert the model to " +
          "safetensors first (transformers: save_pretrained)");
    }
  }
  return InvalidArgument(message +
                         ". Is this a Hugging Face model directory, completely downloaded?");
}

// A file name of an index must be a name in the model directory and nothing else.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos;
}

// weight_map: tensor -> file.
Result<std::map<std::string, std::string>> ReadIndex(FileSystem& fs, const std::string& path) {
  HOLDFAST_ASSIGN(const Bytes text, fs.ReadFile(path, kSafetensorsHeaderMax));
  HOLDFAST_ASSIGN(const Json index, ParseJson(AsText(text), path));
  HOLDFAST_ASSIGN(const Json* weight_map, GetObject(index, "weight_map", path));
  std::map<std::string, std::string> map;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (!file.is_string())
      return InvalidArgument(path + ": weight_map of \"" + tensor + "\" is not a string");
    const std::string name = file.get<std::string>();
    if (!IsPlainName(name)) {
      return InvalidArgument(path + ": weight_map of \"" + tensor + "\" names the file \"" + name +
                             "\"; only plain names inside the model directory are followed");
    }
    map[tensor] = name;
  }
  if (map.empty()) return InvalidArgument(path + ": weight_map is empty");
  return map;
}

struct Listing {
  std::set<std::string> files;
  std::optional<std::map<std::string, std::string>> weight_map;  // if there is an index
};

Result<Listing> ListModel(FileSystem& fs, const std::string& dir, const std::string& index_path) {
  HOLDFAST_ASSIGN(const bool single, fs.Exists(JoinPath(dir, kSingle)));
  HOLDFAST_ASSIGN(const bool indexed, fs.Exists(index_path));
  if (!single && !indexed) return NoWeights(fs, dir);
  Listing listing;
  if (!indexed) {
    listing.files.insert(kSingle);
    return listing;
  }
  HOLDFAST_ASSIGN(listing.weight_map, ReadIndex(fs, index_path));
  for (const auto& [tensor, file] : *listing.weight_map) listing.files.insert(file);
  if (single && !listing.files.contains(kSingle)) {
    return InvalidArgument(
        dir + ": holds both " + kSingle +
        " and an index that does not name it; remove the one that is not the model");
  }
  return listing;
}

// Index and files must agree in both directions.
Status CheckIndex(const std::map<std::string, std::string>& weight_map,
                  const std::map<std::string, SourceModel::Place>& tensors,
                  const std::string& index_path) {
  for (const auto& [name, place] : tensors) {
    const auto listed = weight_map.find(name);
    const std::string& path = place.file->path();
    if (listed == weight_map.end())
      return InvalidArgument(index_path + ": leaves out tensor \"" + name + "\" of " + path);
    if (listed->second != BaseName(path)) {
      return InvalidArgument(index_path + ": puts tensor \"" + name + "\" into " + listed->second +
                             ", but it lies in " + path);
    }
  }
  for (const auto& [name, file] : weight_map) {
    if (!tensors.contains(name))
      return InvalidArgument(index_path + ": names tensor \"" + name + "\", which " + file +
                             " does not hold");
  }
  return OkStatus();
}

}  // namespace

Result<std::unique_ptr<SourceModel>> SourceModel::Open(FileSystem& fs, const std::string& dir) {
  const std::string index_path = JoinPath(dir, kIndex);
  HOLDFAST_ASSIGN(const Listing listing, ListModel(fs, dir, index_path));
  auto model = std::make_unique<SourceModel>();
  model->dir_ = dir;
  for (const std::string& name : listing.files) {
    auto file = SafetensorsFile::Open(fs, JoinPath(dir, name));
    if (file.code() == ErrorCode::kNotFound) {
      return InvalidArgument(index_path + ": names " + name + ", which is not there. Download it");
    }
    if (!file.ok()) return file.error();
    model->files_.push_back(std::move(file).value());
  }
  for (uint32_t i = 0; i < model->files_.size(); ++i) {
    const SafetensorsFile& file = *model->files_[i];
    for (const TensorInfo& t : file.tensors()) {
      const auto [it, added] = model->tensors_.emplace(t.name, Place{&file, &t, i});
      if (!added) {
        return InvalidArgument("tensor \"" + t.name + "\" lies in two files: " +
                               it->second.file->path() + " and " + file.path());
      }
    }
  }
  if (listing.weight_map)
    HOLDFAST_TRY(CheckIndex(*listing.weight_map, model->tensors_, index_path));
  return model;
}

const SourceModel::Place* SourceModel::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

uint64_t SourceModel::total_bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, place] : tensors_) sum += place.tensor->bytes;
  return sum;
}

}  // namespace holdfast
