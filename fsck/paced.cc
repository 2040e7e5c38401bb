// SPDX-License-Identifier: Apache-2.0
#include "fsck/paced.h"

#include <algorithm>

namespace holdfast::fsck {
namespace {

constexpr uint64_t kNapMs = 50;   // how soon a stop is noticed

class PacedFile final : public ReadableFile {
 public:
  PacedFile(PacedFileSystem& fs, std::unique_ptr<ReadableFile> file) : fs_(fs), file_(std::move(file)) {}
  uint64_t size() const override { return file_->size(); }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    HOLDFAST_TRY(fs_.Wait(out.size()));
    return file_->Read(offset, out);
  }
  void DropCache(uint64_t offset, uint64_t length) const override { file_->DropCache(offset, length); }

 private:
  PacedFileSystem& fs_;
  const std::unique_ptr<ReadableFile> file_;
};

}  // namespace

Result<std::unique_ptr<ReadableFile>> PacedFileSystem::Open(const std::string& path) {
  HOLDFAST_ASSIGN(std::unique_ptr<ReadableFile> file, fs_.Open(path));
  return std::unique_ptr<ReadableFile>(std::make_unique<PacedFile>(*this, std::move(file)));
}

Status PacedFileSystem::Wait(uint64_t bytes) {
  if (!armed_) return OkStatus();
  uint64_t mine_ns = 0;
  if (rate_ > 0 && clock_ != nullptr) {
    const std::lock_guard lock(mutex_);
    mine_ns = std::max(free_at_ns_, clock_->MonotonicNs());
    free_at_ns_ = mine_ns + static_cast<uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate_));
  }
  for (;;) {
    if (stopped()) return Stopped("stopped by a signal");
    const uint64_t now = mine_ns > 0 ? clock_->MonotonicNs() : 0;
    if (now >= mine_ns) return OkStatus();
    clock_->SleepMs(std::clamp<uint64_t>((mine_ns - now) / 1'000'000, 1, kNapMs));
  }
}

}  // namespace holdfast::fsck
