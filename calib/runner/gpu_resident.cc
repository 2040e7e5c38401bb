// SPDX-License-Identifier: Apache-2.0
#include "calib/runner/gpu_resident.h"

#include <ATen/core/Tensor.h>

#include "calib/runner/device_session.h"

namespace holdfast {
namespace {

class Held final : public ResidentWeights {
 public:
  Held(const RangeWeights& weights, int device, std::shared_ptr<DeviceSession> session)
      : weights_(weights), device_(device), session_(std::move(session)) {}

  bool Holds(const std::string& tensor) const override { return weights_.source_values.contains(tensor); }
  Result<float> Amax(const std::string& tensor) override {
    const at::Tensor& w = weights_.source_values.at(tensor);
    HOLDFAST_ASSIGN(const auto quantizer, Borrow());
    return quantizer->Amax(DType::kBF16, w.data_ptr(), static_cast<uint64_t>(w.numel()), tensor);
  }
  Status Quantize(const std::string& tensor, float weight_scale_2, std::span<uint8_t> packed, std::span<uint8_t> weight_scale) override {
    const at::Tensor& w = weights_.source_values.at(tensor);
    HOLDFAST_ASSIGN(const auto quantizer, Borrow());
    return quantizer->Quantize(DType::kBF16, w.data_ptr(), static_cast<uint64_t>(w.size(0)), static_cast<uint64_t>(w.size(1)), weight_scale_2, packed,
                               weight_scale);
  }

 private:
  Result<LendingPool<CudaQuantizer>::Loan> Borrow() {
    return session_->quantizers.Borrow([this] { return CudaQuantizer::New(device_); });
  }

  const RangeWeights& weights_;
  const int device_;
  const std::shared_ptr<DeviceSession> session_;
};

}  // namespace

std::unique_ptr<ResidentWeights> HeldOnGpu(const RangeWeights& weights, int device, std::shared_ptr<DeviceSession> session) {
  return std::make_unique<Held>(weights, device, std::move(session));
}

}  // namespace holdfast
