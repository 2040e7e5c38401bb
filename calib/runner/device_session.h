// SPDX-License-Identifier: Apache-2.0
//
// What the runners of one worker share on a GPU: pinned buffers, and what quantizes there. Making pinned memory and giving it back stops the
// device for a moment, so it is done once and not for each group of layers. On a CPU nothing of it is used.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "ledger/base/coding.h"
#include "ledger/base/result.h"
#ifdef HOLDFAST_HAVE_CUDA
#include "calib/runner/device_kernels.h"
#include "export/nvfp4/nvfp4_cuda.h"
#endif

namespace holdfast {

// Things that are lent to one thread at a time. Thread safe. Outlives its loans.
template <class T>
class LendingPool {
 public:
  using Loan = std::unique_ptr<T, std::function<void(T*)>>;
  // One that is idle, or a new one.
  template <class Make>
  Result<Loan> Borrow(Make make) {
    std::unique_ptr<T> one;
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        one = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (one == nullptr) {
      HOLDFAST_ASSIGN(one, make());
    }
    return Loan(one.release(), [this](T* back) {
      std::unique_ptr<T> owned(back);
      const std::lock_guard lock(mutex_);
      idle_.push_back(std::move(owned));
    });
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;   // guarded by mutex_; as many as threads ever asked at once
};

// Memory of hidden states that is used again. What is touched for the first time the kernel makes page by page, and in a virtual machine its host, too:
// on the one where this was measured, that took several times as long as filling it. Thread safe.
class HiddenBuffers {
 public:
  Bytes Take(size_t bytes) {
    Bytes buffer;
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        buffer = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    buffer.resize(bytes);
    return buffer;
  }
  void Give(Bytes buffer) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(buffer));
  }
  void Drop() {
    const std::lock_guard lock(mutex_);
    idle_ = {};
  }

 private:
  std::mutex mutex_;
  std::vector<Bytes> idle_;   // guarded by mutex_; as many as there ever were at once
};

struct RopeOnDevice {
  at::Tensor cos, sin;   // bf16 [tokens, head_dim / 2]
};

class DeviceSession {
 public:
  HiddenBuffers hidden;
#ifdef HOLDFAST_HAVE_CUDA
  LendingPool<device::Uploader> uploaders;
  LendingPool<device::CutLane> lanes;
  LendingPool<CudaQuantizer> quantizers;
  // Held while a sample's kernels are queued, so that samples reach the device one behind the other and not in turns, which would have all of them
  // done at the same time and the device idle while their results are taken away.
  std::mutex launch;
  std::map<uint64_t, RopeOnDevice> rope;   // by tokens; guarded by launch
#endif
};

}  // namespace holdfast
