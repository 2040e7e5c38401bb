// SPDX-License-Identifier: Apache-2.0
//
// Chunks of packs, decoded on several threads and handed over in order through a ring of buffers: memory is bounded by the ring,
// the order of the bytes by the list, and neither by timing.
#pragma once

#include <functional>
#include <vector>

#include "export/shard/output_plan.h"
#include "ledger/pack/pack.h"

namespace holdfast {

struct ChunkJob {
  uint32_t unit = 0;  // whose record
  uint32_t pack = 0, chunk = 0;
  uint64_t raw_len = 0;  // <= kChunkRawMax
  Change change = Change::kNone;  // what the reader does to the bytes, once they proved right
};

// Decodes one chunk into `out` (raw_len bytes), from any thread. Only bytes that proved right may be called OK; `sha256` is there for that.
using ChunkReader = std::function<Status(const ChunkJob& job, std::span<uint8_t> out, const DigestFunction& sha256)>;

inline constexpr uint32_t kDecodeThreadsMax = 5;  // of one stream; each holds up to three chunks
inline constexpr size_t kSpareBuffers = 3;        // one with each of the two that take, one ready
// What one stream holds, at most: the buffers of the ring, and for each thread what it read and what a codec needs to decode it.
inline constexpr uint64_t kStreamBytesMax = (3 * kDecodeThreadsMax + kSpareBuffers) * (kChunkValueMax + (16u << 10));

// The bytes of one chunk; those before them in memory, back to the last multiple of kPastCacheAlign, may be overwritten too.
using ChunkSink = std::function<Status(std::span<uint8_t> bytes)>;

// Takes the bytes of one chunk and, beside it, returns the SHA-256 of a value that a reader has just read. Either may be empty.
using ChunkFollower = std::function<Digest(ByteSpan bytes, ByteSpan value)>;

// Up to so many threads the follower also computes the digests that readers ask for: two at once on its core. With more of them,
// everybody for himself is faster.
inline constexpr uint32_t kPairThreadsMax = 2;

// Reads every chunk and gives its bytes, in the order of `jobs`, to `sink` on the calling thread and to `follower` on another one; the two
// need not keep step. A buffer is used again when both are through with it.
//   first_offset  where the bytes begin in their file: what has offset o there lies in memory at o mod kPastCacheAlign
//   threads       cores to use; a few more threads run, because they also wait for the disk
//   proceed       is asked before each chunk on the calling thread; an error ends the stream
// Returns the first error in the order of the chunks: of `read`, of `proceed`, of `sink`. Neither gets a chunk that failed or one behind it.
// When it is OK, both have had everything.
Status StreamChunks(const std::vector<ChunkJob>& jobs, uint64_t first_offset, const ChunkReader& read, uint32_t threads,
                    const std::function<Status()>& proceed, const ChunkSink& sink, const ChunkFollower& follower);

}  // namespace holdfast
