// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "ledger/pack/pack.h"
#include "ledger/records/value.h"
#include "ledger/segment/lmdb_env.h"

namespace holdfast {
namespace {

constexpr uint64_t kCompareBytes = 1u << 20;
constexpr uint32_t kChunksMax = 4096;  // of one pack; with kPackBytesMax it fixes the map size, hence the bytes of the meta pages

Bytes ChunkKey(uint32_t number) {
  Bytes key;
  PutBe<uint32_t>(&key, number);
  return key;
}

Bytes ChunkValue(Codec codec, ByteSpan raw) {
  ValueHeader h;
  h.cls = kChunkClass;
  h.codec = codec;
  return EncodeValue(h, raw);
}

// SHA-256 of everything that is no value, in file order.
Digest SkeletonOf(ByteSpan file, std::vector<EnvImage::Place> values) {
  std::sort(values.begin(), values.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  Sha256Hasher hasher;
  uint64_t at = 0;
  for (const EnvImage::Place& v : values) {
    hasher.Update(file.subspan(at, v.offset - at));
    at = v.offset + v.length;
  }
  hasher.Update(file.subspan(at));
  return hasher.Finish();
}

// Whether the file at `path` is `want`, byte for byte.
Result<bool> Holds(FileSystem& fs, const std::string& path, ByteSpan want) {
  HOLDFAST_ASSIGN(const auto file, fs.Open(path));
  if (file->size() != want.size()) return false;
  Bytes piece;
  for (uint64_t at = 0; at < want.size(); at += piece.size()) {
    piece.resize(std::min<uint64_t>(want.size() - at, kCompareBytes));
    const Status read = file->Read(at, piece);
    if (read.code() == ErrorCode::kCorrupt) return false;   // it ends early
    HOLDFAST_TRY(read);
    if (!std::equal(piece.begin(), piece.end(), want.begin() + static_cast<std::ptrdiff_t>(at))) return false;
  }
  file->DropCache(0, want.size());
  return true;
}

}  // namespace

// A pack goes through three states: open (builder), sealed (image, with its manifest, waiting to be published), done. A failed
// publication leaves it sealed, so that the caller may free space and call again. A failure in memory cannot be repeated.
struct PackWriter::Impl {
  FileSystem& fs;
  RunLayout layout;
  Nonce incarnation;
  std::string subject;
  std::optional<EnvBuilder> builder;
  PackManifest current;
  uint64_t value_bytes = 0;
  std::optional<EnvImage> sealed;
  std::vector<PackManifest> done;
  Status broken;

  Status Break(const Error& e) {
    broken = Annotate(e, "building a pack for " + subject);
    return broken;
  }
  Status Seal();
  Status PublishSealed();
  Status Flush();
};

PackWriter::PackWriter(FileSystem& fs, const RunLayout& layout, const Nonce& incarnation, std::string subject)
    : impl_(new Impl{fs, layout, incarnation, std::move(subject), {}, {}, 0, {}, {}, {}}) {}
PackWriter::~PackWriter() = default;

Status PackWriter::Impl::Seal() {
  auto image = std::move(*builder).Seal(/*want_places=*/true);
  builder.reset();
  if (!image.ok()) return Break(image.error());
  sealed = std::move(image).value();
  const ByteSpan file = sealed->bytes();
  HOLDFAST_CHECK(sealed->values().size() == current.chunks.size());
  for (size_t i = 0; i < current.chunks.size(); ++i) {
    HOLDFAST_CHECK(sealed->values()[i].length == current.chunks[i].stored_len);
    current.chunks[i].offset = sealed->values()[i].offset;
  }
  current.file_size = file.size();
  current.skeleton = SkeletonOf(file, sealed->values());
  current.root = PackRoot(current);
  return OkStatus();
}

// The name is the content, so a pack that is already there is ours, whoever wrote it. Other bytes under that name are what a file server
// left of a pack that it lost (an empty file, mostly): ours take their place, the name is never free.
Status PackWriter::Impl::PublishSealed() {
  const std::string path = layout.Pack(current.root);
  HOLDFAST_TRY(fs.MakeDirs(DirName(path)));
  HOLDFAST_TRY(fs.MakeDirs(layout.TmpDir(incarnation)));
  HOLDFAST_TRY(fs.SyncDir(layout.PackDir()));
  HOLDFAST_TRY(fs.SyncDir(layout.root()));
  bool tried = false;
  PublishOptions options;
  options.tmp_dir = layout.TmpDir(incarnation);
  options.subject = subject;
  options.cache = PublishOptions::Cache::kDrop;
  options.reached_link = &tried;
  const Status published = Publish(fs, path, {sealed->bytes()}, options);
  if (!published.ok()) {
    if (!tried) return published;
    const auto ours = Holds(fs, path, sealed->bytes());
    // Taken, and yet not to be opened: hidden behind a negative lookup. Whatever it holds, it should hold these bytes.
    const bool hidden = ours.code() == ErrorCode::kNotFound && published.code() == ErrorCode::kAlreadyExists;
    if (!ours.ok() && !hidden) return published;
    options.replace = hidden || !*ours;
    HOLDFAST_TRY(!options.replace ? fs.SyncDir(DirName(path)) : Publish(fs, path, {sealed->bytes()}, options));
  }
  done.push_back(std::move(current));
  current = {};
  value_bytes = 0;
  sealed.reset();
  return OkStatus();
}

Status PackWriter::Impl::Flush() {
  HOLDFAST_TRY(broken);
  if (builder) HOLDFAST_TRY(Seal());
  if (sealed) HOLDFAST_TRY(PublishSealed());
  return OkStatus();
}

Result<StoredTensor::Piece> PackWriter::Add(Codec codec, ByteSpan raw) {
  Impl& w = *impl_;
  if (raw.size() > kChunkRawMax) return InvalidArgument("pack chunk of " + std::to_string(raw.size()) + " bytes, more than " + std::to_string(kChunkRawMax));
  HOLDFAST_TRY(w.broken);
  const Bytes value = ChunkValue(codec, raw);
  if (w.sealed || w.value_bytes + value.size() > kPackBytesMax || w.current.chunks.size() >= kChunksMax) HOLDFAST_TRY(w.Flush());
  if (!w.builder) {
    HOLDFAST_ASSIGN(w.builder, EnvBuilder::Create(EnvMapBytes(kPackBytesMax, kChunksMax)));
  }
  const uint32_t number = static_cast<uint32_t>(w.current.chunks.size());
  const Status added = w.builder->Append(ChunkKey(number), value);
  if (!added.ok()) return w.Break(added.error()).error();
  w.current.chunks.push_back({0, value.size(), raw.size(), Sha256(value)});
  w.value_bytes += value.size();
  return StoredTensor::Piece{static_cast<uint32_t>(w.done.size()), number};
}

Status PackWriter::AddTensor(Codec codec, ByteSpan raw, StoredTensor* tensor) {
  constexpr size_t kStep = kChunkRawMax / 8 * 8;  // whole elements of every type in each chunk
  tensor->digest = Sha256(raw);
  tensor->pieces.clear();
  for (size_t at = 0; at < raw.size(); at += kStep) {
    HOLDFAST_ASSIGN(const StoredTensor::Piece piece, Add(codec, raw.subspan(at, std::min(kStep, raw.size() - at))));
    tensor->pieces.push_back(piece);
  }
  return OkStatus();
}

Result<std::vector<PackManifest>> PackWriter::Finish() {
  HOLDFAST_TRY(impl_->Flush());
  return std::exchange(impl_->done, {});
}

}  // namespace holdfast
