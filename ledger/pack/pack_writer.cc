// SPDX-License-Identifier: Apache-2.0
//
// Packs are filled, sealed and published in order; how many of them are under way at a time is the only thing that depends on the threads.
#include <sys/sysinfo.h>

#include <algorithm>
#include <deque>
#include <future>
#include <memory>
#include <optional>
#include <utility>

#include "ledger/base/parallel.h"
#include "ledger/base/tensor_digest.h"
#include "ledger/base/trace.h"
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

// A pack goes through three states: open (builder), sealed (image, waiting to be published), done. A failed publication leaves it sealed, so that
// the caller may free space and call again. A failure in memory cannot be repeated: `broken`.
struct Pack {
  std::optional<EnvBuilder> builder;
  std::optional<EnvImage> sealed;
  PackManifest manifest;
  uint64_t value_bytes = 0;
  Status broken;
};

// The merge reads it soon. As long as much of the memory is of no use to anybody, what was written may stay there; beyond that it would push out the
// source, and on a GPU that shares the host's memory the weights.
bool MemoryIsPlentiful() {
  constexpr uint64_t kFreeMin = 8ull << 30;
  struct sysinfo info {};
  if (::sysinfo(&info) != 0) return false;
  const uint64_t free = uint64_t{info.freeram} * info.mem_unit, all = uint64_t{info.totalram} * info.mem_unit;
  return free > kFreeMin && free > all / 4;
}

struct Value {
  Bytes bytes;
  Digest digest;
};
Value MakeValue(Codec codec, ByteSpan raw) {
  Value v{ChunkValue(codec, raw), {}};
  v.digest = Sha256(v.bytes);
  return v;
}

}  // namespace

struct PackWriter::Impl {
  FileSystem& fs;
  RunLayout layout;
  Nonce incarnation;
  std::string subject;
  uint32_t threads;
  Pack open;
  struct Closing {
    std::unique_ptr<Pack> pack;
    std::future<Status> closed;                // if a thread has it
  };
  std::deque<Closing> closing;                 // in order; beside them the next one is filled, if there are threads for that
  std::vector<PackManifest> done;
  Status broken;

  Error Broken(const Error& e) const { return Annotate(e, "building a pack for " + subject); }
  uint32_t Number() const { return static_cast<uint32_t>(done.size() + closing.size()); }   // of the open one
  Status Seal(Pack* pack) const;
  Status Publish(Pack* pack) const;
  Status Finish(Pack* pack) const;
  Status AwaitClosing(size_t left);
  Status Close();
  Result<StoredTensor::Piece> Append(const Value& value, uint64_t raw_bytes);
};

PackWriter::PackWriter(FileSystem& fs, const RunLayout& layout, const Nonce& incarnation, std::string subject, uint32_t threads)
    : impl_(new Impl{fs, layout, incarnation, std::move(subject), threads, {}, {}, {}, {}}) {}
PackWriter::~PackWriter() = default;

Status PackWriter::Impl::Seal(Pack* pack) const {
  const TraceSpan span("seal a pack");
  auto image = std::move(*pack->builder).Seal(/*want_places=*/true);
  pack->builder.reset();
  if (!image.ok()) return pack->broken = Broken(image.error());
  pack->sealed = std::move(image).value();
  const ByteSpan file = pack->sealed->bytes();
  const std::vector<EnvImage::Place>& values = pack->sealed->values();
  PackManifest& m = pack->manifest;
  HOLDFAST_CHECK(values.size() == m.chunks.size());
  for (size_t i = 0; i < m.chunks.size(); ++i) {
    HOLDFAST_CHECK(values[i].length == m.chunks[i].stored_len);
    m.chunks[i].offset = values[i].offset;
  }
  m.file_size = file.size();
  m.skeleton = SkeletonOf(file, values);
  m.root = PackRoot(m);
  return OkStatus();
}

// The name is the content, so a pack that is already there is ours, whoever wrote it. Other bytes under that name are what a file server
// left of a pack that it lost (an empty file, mostly): ours take their place, the name is never free.
Status PackWriter::Impl::Publish(Pack* pack) const {
  const TraceSpan span("publish a pack");
  const ByteSpan file = pack->sealed->bytes();
  const std::string path = layout.Pack(pack->manifest.root);
  HOLDFAST_TRY(fs.MakeDirs(DirName(path)));
  HOLDFAST_TRY(fs.MakeDirs(layout.TmpDir(incarnation)));
  HOLDFAST_TRY(fs.SyncDir(layout.PackDir()));
  HOLDFAST_TRY(fs.SyncDir(layout.root()));
  bool tried = false;
  PublishOptions options;
  options.tmp_dir = layout.TmpDir(incarnation);
  options.subject = subject;
  options.cache = MemoryIsPlentiful() ? PublishOptions::Cache::kKeep : PublishOptions::Cache::kDrop;
  options.reached_link = &tried;
  const Status published = holdfast::Publish(fs, path, {file}, options);
  if (!published.ok()) {
    if (!tried) return published;
    const auto ours = Holds(fs, path, file);
    // Taken, and yet not to be opened: hidden behind a negative lookup. Whatever it holds, it should hold these bytes.
    const bool hidden = ours.code() == ErrorCode::kNotFound && published.code() == ErrorCode::kAlreadyExists;
    if (!ours.ok() && !hidden) return published;
    options.replace = hidden || !*ours;
    HOLDFAST_TRY(!options.replace ? fs.SyncDir(DirName(path)) : holdfast::Publish(fs, path, {file}, options));
  }
  pack->sealed.reset();
  return OkStatus();
}

Status PackWriter::Impl::Finish(Pack* pack) const {
  HOLDFAST_TRY(pack->broken);
  if (pack->builder) HOLDFAST_TRY(Seal(pack));
  return pack->sealed ? Publish(pack) : OkStatus();
}

// Until no more than `left` are under way. What failed on its thread is tried again on ours when the caller comes back.
Status PackWriter::Impl::AwaitClosing(size_t left) {
  while (closing.size() > left) {
    Closing& first = closing.front();
    const Status status = first.closed.valid() ? first.closed.get() : Finish(first.pack.get());
    if (!first.pack->broken.ok()) broken = first.pack->broken;
    HOLDFAST_TRY(status);
    done.push_back(std::move(first.pack->manifest));
    closing.pop_front();
  }
  return OkStatus();
}

Status PackWriter::Impl::Close() {
  HOLDFAST_TRY(broken);
  HOLDFAST_TRY(AwaitClosing(PacksClosing(threads) - 1));
  if (!open.builder) return OkStatus();
  closing.push_back({std::make_unique<Pack>(std::exchange(open, {})), {}});
  if (threads < 2) return AwaitClosing(0);
  closing.back().closed = std::async(std::launch::async, [this, pack = closing.back().pack.get()] { return Finish(pack); });
  return OkStatus();
}

Result<StoredTensor::Piece> PackWriter::Impl::Append(const Value& value, uint64_t raw_bytes) {
  HOLDFAST_TRY(broken);
  if (!closing.empty() && !closing.front().closed.valid()) HOLDFAST_TRY(AwaitClosing(0));   // it failed
  if (open.value_bytes + value.bytes.size() > kPackBytesMax || open.manifest.chunks.size() >= kChunksMax) HOLDFAST_TRY(Close());
  if (!open.builder) {
    HOLDFAST_ASSIGN(open.builder, EnvBuilder::Create(EnvMapBytes(kPackBytesMax, kChunksMax)));
  }
  const uint32_t number = static_cast<uint32_t>(open.manifest.chunks.size());
  if (const Status added = open.builder->Append(ChunkKey(number), value.bytes); !added.ok()) {
    broken = Broken(added.error());
    return broken.error();
  }
  open.manifest.chunks.push_back({0, value.bytes.size(), raw_bytes, value.digest});
  open.value_bytes += value.bytes.size();
  return StoredTensor::Piece{Number(), number};
}

Result<StoredTensor::Piece> PackWriter::Add(Codec codec, ByteSpan raw) {
  if (raw.size() > kChunkRawMax) return InvalidArgument("pack chunk of " + std::to_string(raw.size()) + " bytes, more than " + std::to_string(kChunkRawMax));
  HOLDFAST_TRY(impl_->broken);
  return impl_->Append(MakeValue(codec, raw), raw.size());
}

Status PackWriter::AddAll(Codec codec, const std::vector<ByteSpan>& raw, std::vector<StoredTensor::Piece>* pieces) {
  for (size_t first = 0; first < raw.size(); first += impl_->threads) {
    std::vector<Value> values(std::min<size_t>(impl_->threads, raw.size() - first));
    HOLDFAST_TRY(ParallelFor(impl_->threads, values.size(), [&](size_t i) {
      values[i] = MakeValue(codec, raw[first + i]);
      return OkStatus();
    }));
    for (size_t i = 0; i < values.size(); ++i) {
      HOLDFAST_ASSIGN(const StoredTensor::Piece piece, impl_->Append(values[i], raw[first + i].size()));
      pieces->push_back(piece);
    }
  }
  return OkStatus();
}

std::vector<ByteSpan> TensorChunks(ByteSpan raw) {
  constexpr size_t kStep = kChunkRawMax / 8 * 8;  // whole elements of every type in each chunk
  std::vector<ByteSpan> chunks;
  for (size_t at = 0; at < raw.size(); at += kStep) chunks.push_back(raw.subspan(at, std::min(kStep, raw.size() - at)));
  return chunks;
}

// The digest of the whole is one thread's work; beside it the others encode.
Status PackWriter::AddTensor(Codec codec, ByteSpan raw, StoredTensor* tensor) {
  const std::vector<ByteSpan> chunks = TensorChunks(raw);
  std::future<Digest> digest = std::async(impl_->threads > 1 && chunks.size() > 1 ? std::launch::async : std::launch::deferred, [raw] { return TensorDigest(raw); });
  tensor->pieces.clear();
  HOLDFAST_TRY(AddAll(codec, chunks, &tensor->pieces));
  tensor->digest = digest.get();
  return OkStatus();
}

Result<std::vector<PackManifest>> PackWriter::Finish() {
  HOLDFAST_TRY(impl_->Close());
  HOLDFAST_TRY(impl_->AwaitClosing(0));
  return std::exchange(impl_->done, {});
}

}  // namespace holdfast
