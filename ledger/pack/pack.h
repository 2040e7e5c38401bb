// SPDX-License-Identifier: Apache-2.0
//
// Packs: content-addressed, born-sealed LMDB files that hold big data (hidden states at cuts, evicted layers, remainders) as values
// of at most 4 MiB - 16 B (header included), key = chunk number (u32 BE). Built in RAM (a memfd), at most kPackBytesMax each, and
// published like everything else. Every byte of the file is covered: values by the chunk digests, the rest by `skeleton`.
//   root = SHA-256("holdfast pack 1\n" | file_size u64 LE | skeleton | count u32 LE | per chunk: offset u64, stored_len u64, raw_len u64, digest)
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ledger/base/file_system.h"
#include "ledger/base/hash_file.h"
#include "ledger/format/layout.h"
#include "ledger/log/publish.h"
#include "ledger/records/records.h"

namespace holdfast {

inline constexpr uint64_t kChunkValueMax = (4u << 20) - 16;                      // fills whole overflow pages exactly
inline constexpr uint64_t kChunkRawMax = kChunkValueMax - kRecordHeaderBytes;    // so that a stored chunk fits; even
inline constexpr uint64_t kPackBytesMax = 64u << 20;                             // of values in one pack
// Packs that a writer with so many threads seals and syncs while it fills the next one.
constexpr uint32_t PacksClosing(uint32_t threads) { return std::clamp<uint32_t>(threads / 2, 1, 4); }

// How a tensor is cut into chunks.
std::vector<ByteSpan> TensorChunks(ByteSpan raw);

// Collects chunks into one or more packs and publishes each as it fills. Not thread safe.
class PackWriter {
 public:
  // With two or more `threads` the chunks of a tensor are encoded side by side and a full pack is published beside the next one; the same packs.
  PackWriter(FileSystem& fs, const RunLayout& layout, const Nonce& incarnation, std::string subject, uint32_t threads = 1);
  ~PackWriter();
  // Adds raw bytes (<= kChunkRawMax) as one chunk, encoded as `codec` if that helps. Returns where it will be found:
  // `pack` is an index into the vector that Finish returns.
  Result<StoredTensor::Piece> Add(Codec codec, ByteSpan raw);
  // The same for several, in this order.
  Status AddAll(Codec codec, const std::vector<ByteSpan>& raw, std::vector<StoredTensor::Piece>* pieces);
  // Adds a whole tensor, cut into chunks, and fills name-independent fields (digest, pieces).
  Status AddTensor(Codec codec, ByteSpan raw, StoredTensor* tensor);
  // Publishes what is pending. An existing pack of the same root is compared: the same bytes count as published, others are damage and replaced.
  Result<std::vector<PackManifest>> Finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// SHA-256 of its argument, by whatever way. Called on the thread that reads.
using DigestFunction = std::function<Digest(ByteSpan)>;

// Reads chunks of the packs of one record by pread at the recorded place; LMDB is not involved.
// Every chunk is checked against its digest before it is decoded: kCorrupt names the pack file and the chunk.
class PackReader {
 public:
  // kDrop: for who reads everything once; past the page cache where that works.
  PackReader(FileSystem& fs, const RunLayout& layout, const std::vector<PackManifest>& packs, PageCache pages = PageCache::kKeep);
  ~PackReader();
  // Decodes one chunk into `out` (out.size() == raw_len). Thread safe, if `sha256` is.
  Status ReadChunk(uint32_t pack, uint32_t chunk, std::span<uint8_t> out, const DigestFunction& sha256 = Sha256) const;
  uint64_t RawLen(uint32_t pack, uint32_t chunk) const;
  // Reads a tensor (out.size() == its bytes).
  Status ReadTensor(const StoredTensor& t, std::span<uint8_t> out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Reads the whole pack and checks every byte (chunks, skeleton, root, name). For fsck --deep.
Status VerifyPack(FileSystem& fs, const RunLayout& layout, const PackManifest& manifest);

}  // namespace holdfast
