// SPDX-License-Identifier: Apache-2.0
//
// Reading and writing past the page cache (O_DIRECT), for gigabytes that nobody reads again soon: the kernel neither copies them nor looks
// for pages to hold them, and other people's pages stay. Asked of an open file, best effort: a file system that is not known to
// do it well (network, RAM, user space) stays with its cache, and nothing but speed differs.
#pragma once

#include <sys/mman.h>

#include <utility>

#include "ledger/base/file_system.h"

namespace holdfast {

// Memory, file offset and length must be multiples of this. The first piece that is not goes through the cache, and so does all behind it.
inline constexpr size_t kPastCacheAlign = 4096;

// Memory aligned so: pages of its own, which go back to the kernel with it (the heap would keep some for each thread). get() is null
// if there was none.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t size) : size_(size) {
    void* const p = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return;
    (void)::madvise(p, size, MADV_HUGEPAGE);  // the kernel pins every page of every direct read and write
    data_ = static_cast<uint8_t*>(p);
  }
  ~AlignedBuffer() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  AlignedBuffer(AlignedBuffer&& o) noexcept : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& o) noexcept {
    std::swap(data_, o.data_), std::swap(size_, o.size_);
    return *this;
  }
  uint8_t* get() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// What a file of a file system implements that can.
class PastCache {
 public:
  virtual ~PastCache() = default;
  virtual bool GoPastCache() const = 0;
};

// From now on. False: this file stays with the cache.
inline bool GoPastCache(const WritableFile& file) {
  const auto* able = dynamic_cast<const PastCache*>(&file);
  return able != nullptr && able->GoPastCache();
}
inline bool GoPastCache(const ReadableFile& file) {
  const auto* able = dynamic_cast<const PastCache*>(&file);
  return able != nullptr && able->GoPastCache();
}

}  // namespace holdfast
