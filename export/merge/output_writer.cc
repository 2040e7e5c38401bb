// SPDX-License-Identifier: Apache-2.0
#include "export/merge/output_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "ledger/base/fail_point.h"
#include "ledger/base/sha256_pair.h"

namespace holdfast {
namespace {

constexpr uint64_t kFlushBytes =
    8u << 20;  // in the page cache, write-back starts and clean pages go at this step: the disk is never idle
constexpr uint64_t kReportBytes = 64u << 20;  // of progress

Status Invert(uint32_t unit, std::span<uint8_t> bytes) {
  uint32_t bits = 0;
  if (bytes.size() != sizeof bits || !Cursor(bytes).Le(&bits))
    return Corrupt("a scale of unit " + std::to_string(unit) + " has " + std::to_string(bytes.size()) + " bytes, not 4");
  const float x = std::bit_cast<float>(bits), inverse = GlobalScaleIn(OutputLayout::kCompressedTensors, x);
  if (!std::isnormal(inverse)) {
    return Unsupported("a scale of unit " + std::to_string(unit) + " is " + std::to_string(x) +
                       ", whose reciprocal no float32 holds, and compressed-tensors wants that; `jobctl export` with --layout modelopt writes it as it is");
  }
  Bytes raw;
  PutLe(&raw, std::bit_cast<uint32_t>(inverse));
  std::copy(raw.begin(), raw.end(), bytes.begin());
  return OkStatus();
}

}  // namespace

// Chunks in the byte order of the file, checked against its layout before anything is written.
Result<std::vector<ChunkJob>> OutputWriter::Chunks() const {
  std::vector<ChunkJob> jobs;
  for (size_t i = 0; i < file_.layout.tensors.size(); ++i) {
    const TensorInfo& want = file_.layout.tensors[i];
    const TensorOrigin& from = file_.origins[i];
    const StoredTensor* t = units_.Find(from.unit, from.name);
    if (t == nullptr)
      return Corrupt("unit " + std::to_string(from.unit) + " was evicted without tensor " + from.name);
    uint64_t bytes = 0;
    for (const StoredTensor::Piece& p : t->pieces) {
      jobs.push_back({from.unit, p.pack, p.chunk, units_.RawLen(from.unit, p), from.change});
      bytes += jobs.back().raw_len;
    }
    const bool shaped = from.change == Change::kNone ? t->shape == want.shape : t->shape.empty();
    if (t->dtype != want.dtype || !shaped || bytes != want.bytes) {
      return Corrupt("tensor " + from.name +
                     " was evicted with another dtype, shape or length than the plan has");
    }
  }
  return jobs;
}

Result<Digest> OutputWriter::Stream() {
  HOLDFAST_ASSIGN(const std::vector<ChunkJob> jobs, Chunks());
  HOLDFAST_ASSIGN(out_, staging_.NewFile(file_.name));
  cached_ = !GoPastCache(*out_);
  pages_ = std::make_unique<PagedWriter>(*out_);
  Sha256PairHasher hasher;
  hasher.Update(file_.layout.header);
  HOLDFAST_TRY(pages_->AppendCopy(file_.layout.header));
  HOLDFAST_TRY(Written());
  const ChunkReader read = [this](const ChunkJob& job, std::span<uint8_t> bytes, const DigestFunction& sha256) -> Status {
    HOLDFAST_TRY(units_.Read(job.unit, job.pack, job.chunk, bytes, sha256));
    if (job.change == Change::kReciprocal) HOLDFAST_TRY(Invert(job.unit, bytes));
    return OkStatus();
  };
  const ChunkSink write = [this](std::span<uint8_t> bytes) -> Status {
    HOLDFAST_TRY(pages_->Append(bytes));
    return Written();
  };
  HOLDFAST_TRY(StreamChunks(jobs, pages_->offset(), read, options_.threads, options_.proceed, write,
                            [&](ByteSpan bytes, ByteSpan value) { return hasher.UpdateBeside(bytes, value); }));
  HOLDFAST_TRY(pages_->Finish());
  options_.on_written(pages_->offset() - reported_);
  return hasher.Finish();
}

// Behind every write.
Status OutputWriter::Written() {
  const uint64_t done = pages_->offset();
  if (done >= file_.layout.file_size / 2 && !std::exchange(halfway_, true))
    HOLDFAST_TRY(FailPoint("merge.file", file_.name));
  if (cached_ && done - flushed_ >= kFlushBytes) {
    out_->DropCache();
    flushed_ = done;
  }
  if (done - reported_ >= kReportBytes)
    options_.on_written(done - std::exchange(reported_, done));
  return OkStatus();
}

Status OutputWriter::Settle() {
  HOLDFAST_TRY(out_->Sync());
  out_->DropCache();
  return out_->Close();
}

}  // namespace holdfast
