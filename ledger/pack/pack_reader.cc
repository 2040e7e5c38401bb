// SPDX-License-Identifier: Apache-2.0
#include "ledger/pack/pack.h"

#include <algorithm>
#include <mutex>

#include "ledger/base/past_cache.h"
#include "ledger/records/value.h"

namespace holdfast {
namespace {

// Checks one value against its reference: digest first, then everything that the header says.
Status CheckChunk(ByteSpan value, const ChunkRef& ref, const DigestFunction& sha256, ValueHeader* header) {
  if (sha256(value) != ref.digest) return Corrupt("fails its SHA-256");
  HOLDFAST_ASSIGN(*header, DecodeValueHeader(value));
  if (header->cls != kChunkClass || header->raw_len != ref.raw_len) return Corrupt("is no chunk of " + std::to_string(ref.raw_len) + " bytes");
  return OkStatus();
}

Error BadChunk(const std::string& path, size_t chunk, const RunLayout& layout, const Error& e) {
  if (e.code != ErrorCode::kCorrupt) return Annotate(e, path + ", chunk " + std::to_string(chunk));
  return Corrupt(path + ", chunk " + std::to_string(chunk) + ": " + e.message + "; run `jobctl fsck " + layout.root() + " --deep`");
}

}  // namespace

struct PackReader::Impl {
  FileSystem& fs;
  RunLayout layout;
  std::vector<PackManifest> packs;
  PageCache pages;
  mutable std::mutex mutex;  // guards `files`
  mutable std::vector<std::shared_ptr<const ReadableFile>> files;  // shared: a reader may still hold one that another reopened

  Result<std::shared_ptr<const ReadableFile>> Open(uint32_t pack, const ReadableFile* stale) const {
    const std::lock_guard<std::mutex> lock(mutex);
    if (files[pack] == nullptr || files[pack].get() == stale) {
      HOLDFAST_ASSIGN(std::unique_ptr<ReadableFile> file, fs.Open(layout.Pack(packs[pack].root)));
      if (pages == PageCache::kDrop) (void)GoPastCache(*file);
      files[pack] = std::move(file);
    }
    return files[pack];
  }

  // The value lies in `buffer` afterwards, whole pages of the file around it, if it has them.
  // A handle can go stale (ESTALE) when a server fails over: opened again once.
  Result<ByteSpan> ReadValue(uint32_t pack, const ChunkRef& ref, std::span<uint8_t> buffer) const {
    HOLDFAST_ASSIGN(auto file, Open(pack, nullptr));
    if (ref.offset > file->size() || ref.stored_len > file->size() - ref.offset) return Corrupt("ends before its " + std::to_string(ref.stored_len) + " bytes from " + std::to_string(ref.offset));
    const uint64_t value_end = ref.offset + ref.stored_len;
    const uint64_t last_page = (value_end + kPastCacheAlign - 1) / kPastCacheAlign * kPastCacheAlign;
    const uint64_t begin = ref.offset / kPastCacheAlign * kPastCacheAlign, end = last_page <= file->size() ? last_page : value_end;
    const std::span<uint8_t> around = buffer.first(end - begin);
    Status read = file->Read(begin, around);
    if (read.code() == ErrorCode::kTransient) {
      HOLDFAST_ASSIGN(file, Open(pack, file.get()));
      read = file->Read(begin, around);
    }
    HOLDFAST_TRY(read);
    return ByteSpan(around.subspan(ref.offset - begin, ref.stored_len));
  }
};

PackReader::PackReader(FileSystem& fs, const RunLayout& layout, const std::vector<PackManifest>& packs, PageCache pages)
    : impl_(new Impl{fs, layout, packs, pages, {}, std::vector<std::shared_ptr<const ReadableFile>>(packs.size())}) {}
PackReader::~PackReader() = default;

uint64_t PackReader::RawLen(uint32_t pack, uint32_t chunk) const {
  if (pack >= impl_->packs.size() || chunk >= impl_->packs[pack].chunks.size()) return 0;
  return impl_->packs[pack].chunks[chunk].raw_len;
}

Status PackReader::ReadChunk(uint32_t pack, uint32_t chunk, std::span<uint8_t> out, const DigestFunction& sha256) const {
  if (pack >= impl_->packs.size() || chunk >= impl_->packs[pack].chunks.size()) {
    return InvalidArgument("pack " + std::to_string(pack) + ", chunk " + std::to_string(chunk) + " is not in the record");
  }
  const ChunkRef& ref = impl_->packs[pack].chunks[chunk];
  const std::string path = impl_->layout.Pack(impl_->packs[pack].root);
  if (out.size() != ref.raw_len || ref.stored_len > kChunkValueMax) {
    return InvalidArgument(path + ", chunk " + std::to_string(chunk) + ": holds " + std::to_string(ref.raw_len) + " bytes, " + std::to_string(out.size()) + " were asked for");
  }
  // One buffer a thread, never cleared: at gigabytes a second, clearing and faulting in 4 MiB for every chunk is a tenth of the work.
  constexpr size_t kRoom = kChunkValueMax / kPastCacheAlign * kPastCacheAlign + 2 * kPastCacheAlign;  // wherever in a page it begins
  thread_local AlignedBuffer buffer;
  if (buffer.get() == nullptr) buffer = AlignedBuffer(kRoom);
  if (buffer.get() == nullptr) return Exhausted("no memory to read " + path);
  const Result<ByteSpan> value = impl_->ReadValue(pack, ref, {buffer.get(), kRoom});
  if (value.code() == ErrorCode::kNotFound) return value.error();
  Status s = value.ok() ? OkStatus() : Status(value.error());
  ValueHeader header;
  if (s.ok()) s = CheckChunk(*value, ref, sha256, &header);
  if (s.ok()) s = Decode(header.codec, ValuePayload(*value), out);
  return s.ok() ? s : BadChunk(path, chunk, impl_->layout, s.error());
}

Status PackReader::ReadTensor(const StoredTensor& t, std::span<uint8_t> out) const {
  if (out.size() != t.bytes()) return InvalidArgument("tensor " + t.name + ": room for " + std::to_string(out.size()) + " bytes, it has " + std::to_string(t.bytes()));
  size_t at = 0;
  for (const StoredTensor::Piece& p : t.pieces) {
    const uint64_t n = RawLen(p.pack, p.chunk);
    if (n > out.size() - at) return Corrupt("tensor " + t.name + ": its pieces are longer than its shape");
    HOLDFAST_TRY(ReadChunk(p.pack, p.chunk, out.subspan(at, n)));
    at += n;
  }
  if (at != out.size()) return Corrupt("tensor " + t.name + ": its pieces are shorter than its shape");
  return OkStatus();
}

// ---- verification ----

static Status HashGap(const ReadableFile& file, uint64_t from, uint64_t to, Sha256Hasher* hasher) {
  constexpr uint64_t kStep = 1u << 20;
  Bytes buffer;
  for (; from < to; from += buffer.size()) {
    buffer.resize(std::min(kStep, to - from));
    HOLDFAST_TRY(file.Read(from, buffer));
    hasher->Update(buffer);
  }
  return OkStatus();
}

static std::vector<size_t> OrderByOffset(const PackManifest& m) {
  std::vector<size_t> order(m.chunks.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return m.chunks[a].offset < m.chunks[b].offset; });
  return order;
}

static Status VerifyChunk(const ReadableFile& file, const ChunkRef& ref) {
  Bytes value(ref.stored_len), raw(ref.raw_len);
  HOLDFAST_TRY(file.Read(ref.offset, value));
  ValueHeader header;
  HOLDFAST_TRY(CheckChunk(value, ref, Sha256, &header));
  return Decode(header.codec, ValuePayload(value), raw);
}

Status VerifyPack(FileSystem& fs, const RunLayout& layout, const PackManifest& m) {
  const std::string path = layout.Pack(m.root);
  HOLDFAST_TRY(ManifestFromJson(ManifestToJson(m), path));  // root, bounds, overlap
  HOLDFAST_ASSIGN(const auto file, fs.Open(path));
  if (file->size() != m.file_size) return Corrupt(path + ": has " + std::to_string(file->size()) + " bytes instead of " + std::to_string(m.file_size));
  Sha256Hasher skeleton;
  uint64_t at = 0;
  for (const size_t i : OrderByOffset(m)) {
    const ChunkRef& ref = m.chunks[i];
    HOLDFAST_TRY(HashGap(*file, at, ref.offset, &skeleton));
    const Status s = VerifyChunk(*file, ref);
    if (!s.ok()) return BadChunk(path, i, layout, s.error());
    at = ref.offset + ref.stored_len;
  }
  HOLDFAST_TRY(HashGap(*file, at, m.file_size, &skeleton));
  file->DropCache(0, m.file_size);
  if (skeleton.Finish() != m.skeleton) return Corrupt(path + ": the bytes around its chunks fail their SHA-256");
  return OkStatus();
}

}  // namespace holdfast
