// SPDX-License-Identifier: Apache-2.0
#include "calib/runner/gpu_resident.h"

#include <ATen/core/Tensor.h>

#include <mutex>

#include "export/nvfp4/nvfp4_cuda.h"

namespace holdfast {
namespace {

class Held final : public ResidentWeights {
 public:
  Held(const RangeWeights& weights, int device) : weights_(weights), device_(device) {}

  bool Holds(const std::string& tensor) const override { return weights_.source_values.contains(tensor); }
  Result<float> Amax(const std::string& tensor) override {
    const at::Tensor& w = weights_.source_values.at(tensor);
    HOLDFAST_ASSIGN(auto quantizer, Borrow());
    Result<float> amax = quantizer->Amax(DType::kBF16, w.data_ptr(), static_cast<uint64_t>(w.numel()), tensor);
    GiveBack(std::move(quantizer));
    return amax;
  }
  Status Quantize(const std::string& tensor, float weight_scale_2, std::span<uint8_t> packed, std::span<uint8_t> weight_scale) override {
    const at::Tensor& w = weights_.source_values.at(tensor);
    HOLDFAST_ASSIGN(auto quantizer, Borrow());
    const Status done = quantizer->Quantize(DType::kBF16, w.data_ptr(), static_cast<uint64_t>(w.size(0)), static_cast<uint64_t>(w.size(1)),
                                            weight_scale_2, packed, weight_scale);
    GiveBack(std::move(quantizer));
    return done;
  }

 private:
  Result<std::unique_ptr<CudaQuantizer>> Borrow() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        auto one = std::move(idle_.back());
        idle_.pop_back();
        return one;
      }
    }
    return CudaQuantizer::New(device_);
  }
  void GiveBack(std::unique_ptr<CudaQuantizer> one) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(one));
  }

  const RangeWeights& weights_;
  const int device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<CudaQuantizer>> idle_;   // guarded by mutex_; as many as threads ever asked at once
};

}  // namespace

std::unique_ptr<ResidentWeights> HeldOnGpu(const RangeWeights& weights, int device) { return std::make_unique<Held>(weights, device); }

}  // namespace holdfast
