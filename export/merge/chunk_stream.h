// SPDX-License-Identifier: Apache-2.0
//
// Chunks of packs, decoded on several threads and handed over in order through a ring of buffers: memory is bounded by the ring,
// the order of the bytes by the list, and neither by timing.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "ledger/pack/pack.h"

namespace holdfast {

struct ChunkJob {
  uint32_t unit = 0;  // whose record
  uint32_t pack = 0, chunk = 0;
  uint64_t raw_len = 0;  // <= kChunkRawMax
};

// Decodes one chunk into `out` (raw_len bytes), from any thread.
using ChunkReader = std::function<Status(const ChunkJob& job, std::span<uint8_t> out)>;

inline constexpr uint32_t kDecodeThreadsMax =
    5;  // each holds up to three chunks: keeps merge under 100 MB on any machine

// `threads`: cores to use; a few more threads run, because they also wait for the disk.
// Reads every chunk and calls `sink` with its bytes, in the order of `jobs`, on the calling thread. The first error, of `read` or of
// `sink`, ends it. kStopped soon after `*stop` turns true.
Status StreamChunks(const std::vector<ChunkJob>& jobs, const ChunkReader& read, uint32_t threads,
                    const std::atomic<bool>* stop, const std::function<Status(ByteSpan)>& sink);

}  // namespace holdfast
