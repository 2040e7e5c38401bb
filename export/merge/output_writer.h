// SPDX-License-Identifier: Apache-2.0
//
// One tensor file of the output: its chunks are read, verified and decoded ahead on several threads, written by one and hashed by another.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "export/merge/chunk_stream.h"
#include "export/merge/paged_writer.h"
#include "export/merge/staging.h"
#include "export/merge/unit_reader.h"
#include "export/shard/output_plan.h"

namespace holdfast {

class OutputWriter {
 public:
  struct Options {
    uint32_t threads = 1;
    std::function<Status()> proceed;                    // an error gives up
    std::function<void(uint64_t bytes)> on_written;     // now and then; on the thread of Stream
  };
  OutputWriter(const Staging& staging, const UnitReader& units, const OutputFile& file, Options options)
      : staging_(staging), units_(units), file_(file), options_(std::move(options)) {}

  // Writes every byte, and returns the SHA-256 of what was written. Nothing that fails its digest is written.
  Result<Digest> Stream();
  Status Settle();  // fsync, close

 private:
  Result<std::vector<ChunkJob>> Chunks() const;
  Status Written();

  const Staging& staging_;
  const UnitReader& units_;
  const OutputFile& file_;
  const Options options_;
  std::unique_ptr<WritableFile> out_;
  std::unique_ptr<PagedWriter> pages_;
  bool cached_ = true;                      // writes go through the page cache
  uint64_t flushed_ = 0, reported_ = 0;     // offsets
  bool halfway_ = false;
};

}  // namespace holdfast
