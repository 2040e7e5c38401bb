// SPDX-License-Identifier: Apache-2.0
//
// safetensors: 8-byte little-endian header length, JSON header, tensor bytes. The reader trusts nothing: the header must fit the
// file, every tensor must have a known dtype and byte count = shape * dtype, the ranges must tile the data section exactly
// (no overlap, no gap, no tail), and no key may appear twice. The writer's order is that of the safetensors library as
// Model-Optimizer uses it: dtypes by falling width (F32, BF16/F16, F8_E4M3, U8), names within, header padded with spaces to 8.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/base/json.h"
#include "ledger/records/records.h"

namespace holdfast {

inline constexpr uint64_t kSafetensorsHeaderMax = 100u << 20;   // as the safetensors library

struct TensorInfo {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<uint64_t> shape;
  uint64_t offset = 0;  // absolute, in the file
  uint64_t bytes = 0;
};

// Parses and checks a header. `header_and_length` = the first 8 + n bytes of the file.
// Errors: kInvalidArgument naming `path`, the tensor, the field and what was expected.
Result<std::vector<TensorInfo>> ParseSafetensorsHeader(ByteSpan header_and_length, uint64_t file_size, const std::string& path);

class SafetensorsFile {
 public:
  static Result<std::unique_ptr<SafetensorsFile>> Open(FileSystem& fs, const std::string& path);
  const std::string& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }   // by offset
  const TensorInfo* Find(const std::string& name) const;
  const Digest& header_sha256() const { return header_sha256_; }
  uint64_t size() const { return file_->size(); }
  Status Read(const TensorInfo& t, std::span<uint8_t> out) const;       // out.size() == t.bytes; thread safe
  const ReadableFile& file() const { return *file_; }

 private:
  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> by_name_;
  Digest header_sha256_;
};

// A model directory: model.safetensors, or model.safetensors.index.json and the files it names. Any other *.safetensors lying
// beside them is not part of the model. Hugging Face hub snapshots (symlinks) work.
class SourceModel {
 public:
  // Errors (kInvalidArgument): no weights found (says what was looked for, and that .bin files need converting), an index that names
  // a missing file or tensor, a tensor in two files, a tensor of a file that the index leaves out.
  static Result<std::unique_ptr<SourceModel>> Open(FileSystem& fs, const std::string& dir);
  const std::string& dir() const { return dir_; }
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }   // in name order
  struct Place { const SafetensorsFile* file; const TensorInfo* tensor; uint32_t file_index; };
  const Place* Find(const std::string& name) const;
  const std::map<std::string, Place>& tensors() const { return tensors_; }
  uint64_t total_bytes() const;

 private:
  std::string dir_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Place> tensors_;
};

// Bytes of length + header for tensors whose offsets are assigned here, in writing order (the order of the returned vector).
struct SafetensorsLayout {
  Bytes header;                     // 8 + n bytes
  std::vector<TensorInfo> tensors;  // in file order; offsets absolute
  uint64_t file_size = 0;
};
SafetensorsLayout LayOutSafetensors(std::vector<TensorInfo> tensors);   // name, dtype, shape given; {"format":"pt"} metadata

}  // namespace holdfast
