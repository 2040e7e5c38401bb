// SPDX-License-Identifier: Apache-2.0
//
// V006-V010: the safetensors files and their index. The reader checks the structure of one file; here they are checked
// against each other.
#include <algorithm>

#include "export/verify/output_view.h"

namespace holdfast {
namespace {

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kSingle[] = "model.safetensors";

// Opens one shard; what is wrong with its bytes is a finding.
Status OpenShard(OutputView* view, const std::string& name) {
  auto file = SafetensorsFile::Open(view->fs, JoinPath(view->dir, name));
  if (file.ok()) {
    view->shards.push_back(std::move(*file));
    return OkStatus();
  }
  switch (file.code()) {
    case ErrorCode::kNotFound:
      view->sink.Add("V007", name, "the shard is missing; copy it again, or write the output again");
      return OkStatus();
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kCorrupt:
    case ErrorCode::kUnsupported:
    case ErrorCode::kResourceExhausted:
      view->sink.Add("V006", name, file.error().message);
      return OkStatus();
    default:
      return file.error();
  }
}

void CollectTensors(OutputView* view) {
  for (const auto& shard : view->shards) {
    for (const TensorInfo& t : shard->tensors()) {
      const auto [it, fresh] = view->tensors.emplace(t.name, OutputView::Place{shard.get(), &t});
      if (!fresh) {
        view->sink.Add("V008", t.name, "stored twice, in " + BaseName(it->second.file->path()) + " and in " + BaseName(shard->path()));
      }
    }
  }
}

void CheckWeightMap(OutputView* view, const Json& map) {
  for (const auto& [tensor, file] : map.items()) {
    const auto it = view->tensors.find(tensor);
    const std::string shard = file.is_string() ? file.get<std::string>() : "";
    if (it == view->tensors.end()) {
      view->sink.Add("V008", tensor, "the index lists the tensor in \"" + shard + "\", no shard holds it");
    } else if (BaseName(it->second.file->path()) != shard) {
      view->sink.Add("V008", tensor, "the index says \"" + shard + "\", the tensor lies in " + BaseName(it->second.file->path()));
    }
  }
  for (const auto& [name, place] : view->tensors) {
    if (!map.contains(name)) view->sink.Add("V008", name, "the index does not list the tensor of " + BaseName(place.file->path()));
  }
}

void CheckTotalSize(OutputView* view, const Json& index) {
  uint64_t sum = 0;
  for (const auto& [name, place] : view->tensors) sum += place.tensor->bytes;
  const Result<const Json*> metadata = GetObject(index, "metadata", kIndex);
  const Result<uint64_t> said = metadata.ok() ? GetUint(**metadata, "total_size", kIndex) : Result<uint64_t>(metadata.error());
  if (!said.ok()) {
    view->sink.Add("V009", kIndex, said.error().message);
  } else if (*said != sum) {
    view->sink.Add("V009", kIndex, "total_size is " + std::to_string(*said) + ", the tensors have " + std::to_string(sum) + " bytes");
  }
}

// A name like model-00002-of-00004.safetensors promises how many there are.
void CheckPromisedCount(OutputView* view, const std::set<std::string>& shards) {
  for (const std::string& name : shards) {
    const size_t at = name.find("-of-");
    if (at == std::string::npos || !name.ends_with(".safetensors")) continue;
    const std::string digits = name.substr(at + 4, name.size() - at - 4 - 12);
    if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos) continue;
    if (std::stoul(digits) != shards.size()) {
      view->sink.Add("V007", name, "the name says one of " + digits + " shards, the index names " + std::to_string(shards.size()));
      return;
    }
  }
}

struct Index {
  Json json;
  std::set<std::string> shards;
};

Result<Index> ReadIndex(OutputView* view) {
  HOLDFAST_ASSIGN(const Bytes text, view->fs.ReadFile(JoinPath(view->dir, kIndex)));
  Index index;
  HOLDFAST_ASSIGN(index.json, ParseJson(AsText(text), kIndex));
  HOLDFAST_ASSIGN(const Json* map, GetObject(index.json, "weight_map", kIndex));
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos) {
      return InvalidArgument(std::string(kIndex) + ": weight_map[\"" + tensor + "\"] is not a file name");
    }
    index.shards.insert(file.get<std::string>());
  }
  if (index.shards.empty()) return InvalidArgument(std::string(kIndex) + ": weight_map is empty");
  return index;
}

void RefuseStrangers(OutputView* view, const std::set<std::string>& shards) {
  for (const auto& [name, size] : view->names) {
    if (!name.ends_with(".safetensors") || shards.contains(name)) continue;
    view->sink.Add("V010", name, "not part of the model, but a loader that takes every *.safetensors would read it: remove it");
  }
}

}  // namespace

Status CheckShards(OutputView* view) {
  if (!view->names.contains(kIndex)) {
    HOLDFAST_TRY(OpenShard(view, kSingle));
    CollectTensors(view);
    RefuseStrangers(view, {kSingle});
    return OkStatus();
  }
  const Result<Index> index = ReadIndex(view);
  if (!index.ok()) {
    if (index.code() != ErrorCode::kInvalidArgument) return index.error();
    view->sink.Add("V007", kIndex, index.error().message);
    return OkStatus();
  }
  for (const std::string& name : index->shards) HOLDFAST_TRY(OpenShard(view, name));
  CollectTensors(view);
  RefuseStrangers(view, index->shards);
  CheckPromisedCount(view, index->shards);
  if (view->shards.size() == index->shards.size()) {
    CheckWeightMap(view, index->json["weight_map"]);
    CheckTotalSize(view, index->json);
  }
  return OkStatus();
}

}  // namespace holdfast
