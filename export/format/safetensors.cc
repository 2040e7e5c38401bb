// SPDX-License-Identifier: Apache-2.0
#include "export/format/safetensors.h"

#include <algorithm>

namespace holdfast {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr size_t kRankMax = 16;  // dimensions of a tensor; torch stops at 64, models at 5

Error Bad(const std::string& path, const std::string& what) {
  return InvalidArgument(path + ": " + what);
}

// a * b, or an error: hostile shapes multiply past 2^64.
bool MultiplyOverflows(uint64_t a, uint64_t b, uint64_t* out) {
  return __builtin_mul_overflow(a, b, out);
}

Result<uint64_t> HeaderLength(ByteSpan first8, uint64_t file_size, const std::string& path) {
  Cursor cursor(first8);
  uint64_t n = 0;
  if (file_size < kLengthBytes || !cursor.Le(&n)) {
    return Bad(path,
               "only " + std::to_string(file_size) +
                   " bytes long; a safetensors file begins with the 8-byte length of its header");
  }
  if (n > kSafetensorsHeaderMax) {
    return Bad(path, "claims a header of " + std::to_string(n) +
                         " bytes, more than the format's limit of " +
                         std::to_string(kSafetensorsHeaderMax) +
                         "; not a safetensors file, or damaged");
  }
  if (n > file_size - kLengthBytes) {
    return Bad(path, "truncated: the header needs " + std::to_string(n + kLengthBytes) +
                         " bytes, the file has " + std::to_string(file_size) +
                         ". Download it again");
  }
  return n;
}

Status CheckMetadata(const Json& metadata, const std::string& path) {
  if (!metadata.is_object()) return Bad(path, "field \"__metadata__\" is not an object");
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string())
      return Bad(path, "field \"__metadata__\".\"" + key + "\" is not a string");
  }
  return OkStatus();
}

Result<std::vector<uint64_t>> ParseShape(const Json& entry, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* shape, GetArray(entry, "shape", what));
  if (shape->size() > kRankMax)
    return InvalidArgument(what + ": field \"shape\" has " + std::to_string(shape->size()) +
                           " dimensions");
  std::vector<uint64_t> dims;
  for (const Json& d : *shape) {
    if (!d.is_number_unsigned())
      return InvalidArgument(
          what + ": field \"shape\" holds something that is not a non-negative integer");
    dims.push_back(d.get<uint64_t>());
  }
  return dims;
}

// Offsets come out relative to the data section.
Result<TensorInfo> ParseEntry(const std::string& name, const Json& entry, const std::string& path) {
  const std::string what = path + ": tensor \"" + name + "\"";
  TensorInfo t;
  t.name = name;
  HOLDFAST_ASSIGN(const std::string dtype, GetString(entry, "dtype", what));
  const auto type = DTypeFromName(dtype);
  if (!type) return InvalidArgument(what + ": unknown dtype \"" + dtype + "\"");
  t.dtype = *type;
  HOLDFAST_ASSIGN(t.shape, ParseShape(entry, what));
  HOLDFAST_ASSIGN(const Json* offsets, GetArray(entry, "data_offsets", what));
  if (offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return InvalidArgument(what +
                           ": field \"data_offsets\" is not a pair of non-negative integers");
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  uint64_t bytes = DTypeBytes(t.dtype);
  for (const uint64_t d : t.shape) {
    if (MultiplyOverflows(bytes, d, &bytes))
      return InvalidArgument(what + ": field \"shape\" multiplies to more than 2^64 bytes");
  }
  if (end < begin || end - begin != bytes) {
    return InvalidArgument(what + ": field \"data_offsets\" is [" + std::to_string(begin) + ", " +
                           std::to_string(end) + "], but dtype and shape need " +
                           std::to_string(bytes) + " bytes");
  }
  t.offset = begin;
  t.bytes = bytes;
  return t;
}

// The ranges must tile [0, size): sorts by offset and turns offsets into absolute ones.
Status CheckTiling(std::vector<TensorInfo>* tensors, uint64_t data_begin, uint64_t size,
                   const std::string& path) {
  std::sort(tensors->begin(), tensors->end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  uint64_t at = 0;
  for (TensorInfo& t : *tensors) {
    if (t.bytes > size || t.offset > size - t.bytes) {
      return Bad(path, "truncated: tensor \"" + t.name + "\" ends at byte " +
                           std::to_string(t.offset + t.bytes) + " of the data, which has only " +
                           std::to_string(size) + ". Download it again");
    }
    if (t.offset != at) {
      return Bad(path,
                 "tensor \"" + t.name + "\" " +
                     (t.offset < at ? "overlaps the one before it" : "leaves a gap before it") +
                     ": begins at byte " + std::to_string(t.offset) + " of the data instead of " +
                     std::to_string(at));
    }
    at += t.bytes;
    t.offset += data_begin;
  }
  if (at != size) {
    return Bad(path, std::to_string(size - at) +
                         " bytes after the last tensor belong to nothing; the file is damaged or "
                         "hides something");
  }
  return OkStatus();
}

// Writing order of the safetensors library: its dtype enumeration from the end.
int WritingRank(DType t) {
  constexpr DType kOrder[] = {DType::kU64, DType::kI64, DType::kF64,    DType::kF32,
                              DType::kU32, DType::kI32, DType::kBF16,   DType::kF16,
                              DType::kU16, DType::kI16, DType::kF8E4M3, DType::kF8E5M2,
                              DType::kI8,  DType::kU8,  DType::kBool};
  return static_cast<int>(std::find(std::begin(kOrder), std::end(kOrder), t) - std::begin(kOrder));
}

}  // namespace

Result<std::vector<TensorInfo>> ParseSafetensorsHeader(ByteSpan header_and_length,
                                                       uint64_t file_size,
                                                       const std::string& path) {
  HOLDFAST_ASSIGN(const uint64_t n, HeaderLength(header_and_length, file_size, path));
  if (header_and_length.size() < kLengthBytes + n) {
    return Bad(path, "truncated: " + std::to_string(header_and_length.size()) +
                         " bytes of a header of " + std::to_string(n + kLengthBytes));
  }
  const ByteSpan text = header_and_length.subspan(kLengthBytes, n);
  if (n == 0 || text[0] != '{')
    return Bad(path, "the header does not begin with \"{\"; not a safetensors file, or damaged");
  HOLDFAST_ASSIGN(const Json header,
                  ParseJson(AsText(text), path + ": header", kSafetensorsHeaderMax));
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      HOLDFAST_TRY(CheckMetadata(entry, path));
      continue;
    }
    HOLDFAST_ASSIGN(TensorInfo t, ParseEntry(name, entry, path));
    tensors.push_back(std::move(t));
  }
  HOLDFAST_TRY(CheckTiling(&tensors, kLengthBytes + n, file_size - kLengthBytes - n, path));
  return tensors;
}

Result<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(FileSystem& fs,
                                                               const std::string& path) {
  auto out = std::make_unique<SafetensorsFile>();
  out->path_ = path;
  HOLDFAST_ASSIGN(out->file_, fs.Open(path));
  const uint64_t size = out->file_->size();
  Bytes header(std::min(size, kLengthBytes));
  HOLDFAST_TRY(out->file_->Read(0, header));
  HOLDFAST_ASSIGN(const uint64_t n, HeaderLength(header, size, path));
  header.resize(kLengthBytes + n);
  HOLDFAST_TRY(out->file_->Read(0, header));
  HOLDFAST_ASSIGN(out->tensors_, ParseSafetensorsHeader(header, size, path));
  out->header_sha256_ = Sha256(header);
  for (size_t i = 0; i < out->tensors_.size(); ++i) out->by_name_[out->tensors_[i].name] = i;
  return out;
}

const TensorInfo* SafetensorsFile::Find(const std::string& name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

Status SafetensorsFile::Read(const TensorInfo& t, std::span<uint8_t> out) const {
  HOLDFAST_CHECK(out.size() == t.bytes);
  return file_->Read(t.offset, out);
}

SafetensorsLayout LayOutSafetensors(std::vector<TensorInfo> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::make_pair(WritingRank(a.dtype), std::cref(a.name)) <
           std::make_pair(WritingRank(b.dtype), std::cref(b.name));
  });
  std::string text = R"({"__metadata__":{"format":"pt"})";
  uint64_t at = 0;
  for (TensorInfo& t : tensors) {
    t.bytes = DTypeBytes(t.dtype);
    for (const uint64_t d : t.shape) HOLDFAST_CHECK(!MultiplyOverflows(t.bytes, d, &t.bytes));
    const Json entry_offsets = {at, at + t.bytes};
    text.append(",")
        .append(Json(t.name).dump())
        .append(R"(:{"dtype":")")
        .append(DTypeName(t.dtype))
        .append(R"(","shape":)");
    text.append(Json(t.shape).dump())
        .append(R"(,"data_offsets":)")
        .append(entry_offsets.dump())
        .append("}");
    t.offset = at;
    at += t.bytes;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  SafetensorsLayout layout;
  PutLe(&layout.header, static_cast<uint64_t>(text.size()));
  layout.header.insert(layout.header.end(), text.begin(), text.end());
  for (TensorInfo& t : tensors) t.offset += layout.header.size();
  layout.file_size = layout.header.size() + at;
  layout.tensors = std::move(tensors);
  return layout;
}

}  // namespace holdfast
