// SPDX-License-Identifier: Apache-2.0
#include "fsck/memory.h"

#include "ledger/base/json.h"

namespace holdfast::fsck {
namespace {

constexpr uint64_t kFileBytesMax = 64u << 20;
constexpr uint64_t kKeepEvery = 1ull << 30;   // bytes read: a check that is killed loses no more

}  // namespace

DeepMemory::DeepMemory(FileSystem& fs, const std::string& dir, const Nonce& id, uint64_t now_wall_ns)
    : fs_(fs), file_(dir + "/fsck-" + id.Hex() + ".json"), began_ns_(now_wall_ns) {
  const auto bytes = fs_.ReadFile(file_, kFileBytesMax);
  const auto json = bytes.ok() ? ParseJson(AsText(*bytes), file_, kFileBytesMax) : Result<Json>(bytes.error());
  if (!json.ok() || !json->is_object()) return;
  const auto began = json->find("began_ns"), known = json->find("known");
  if (began == json->end() || !began->is_number_unsigned() || known == json->end() || !known->is_array()) return;
  const uint64_t then = began->get<uint64_t>();
  if (then > now_wall_ns || now_wall_ns - then > kMemoryAgeNs) return;
  began_ns_ = then;
  for (const Json& one : *known) {
    if (one.is_string()) known_.insert(one.get<std::string>());
  }
}

std::string DeepMemory::Stamp(const std::string& path) const {
  const auto info = fs_.Stat(path);
  if (!info.ok()) return "";
  return std::to_string(info->size) + " " + std::to_string(info->mtime_ns) + " " + std::to_string(info->inode) + " " + path + "\n";
}

bool DeepMemory::Knows(const std::string& what, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  const bool knows = known_.contains(what);
  bytes_known_ += knows ? bytes : 0;
  return knows;
}

void DeepMemory::Learn(const std::string& what, uint64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    known_.insert(what);
    unkept_ += bytes;
    if (unkept_ < kKeepEvery) return;
  }
  Keep();
}

void DeepMemory::Keep() {
  const std::lock_guard lock(mutex_);
  unkept_ = 0;
  Json known = Json::array();
  for (const std::string& one : known_) known.push_back(one);
  const std::string text = Json{{"schema", 1}, {"began_ns", began_ns_}, {"known", std::move(known)}}.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (!fs_.MakeDirs(DirName(file_)).ok()) return;
  const std::string part = file_ + ".part";
  auto file = fs_.Create(part, 0600);
  if (file.ok() && (*file)->Append(AsBytes(text)).ok() && (*file)->Close().ok()) (void)fs_.Replace(part, file_);
}

void DeepMemory::Forget() {
  const std::lock_guard lock(mutex_);
  (void)fs_.Unlink(file_);
}

}  // namespace holdfast::fsck
