// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/torch_matmul.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <chrono>
#include <ctime>

namespace holdfast {
namespace {

// Of one `work`, many of them queued at once; `result` is what the last one writes.
template <class Work>
double TimeQueued(const at::Tensor& result, int repeats, const Work& work) {
  const auto wait = [&] { return result.flatten()[0].item<float>(); };
  work();
  wait();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) work();
  wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / repeats;
}

at::TensorOptions Bf16On(const std::string& device) { return at::TensorOptions().dtype(at::kBFloat16).device(at::Device(device)); }

}  // namespace

double ThreadCpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

double TimeTorchMatmul(int64_t m, int64_t k, int64_t n, int repeats) {
  const c10::InferenceMode guard;
  at::set_num_threads(1);
  const at::Tensor a = at::randn({m, k}).to(at::kBFloat16), b = at::randn({n, k}).to(at::kBFloat16);
  at::Tensor c = at::empty({m, n}, at::kBFloat16);
  at::mm_out(c, a, b.t());
  const double begin = ThreadCpuSeconds();
  for (int i = 0; i < repeats; ++i) at::mm_out(c, a, b.t());
  return (ThreadCpuSeconds() - begin) / repeats;
}

double TimeTorchMatmulOn(const std::string& device, int64_t m, int64_t k, int64_t n, int repeats) {
  const c10::InferenceMode guard;
  const auto options = Bf16On(device);
  const at::Tensor a = at::randn({m, k}, options), b = at::randn({n, k}, options);   // zeros would draw less power
  at::Tensor c = at::empty({m, n}, options);
  return TimeQueued(c, repeats, [&] { at::mm_out(c, a, b.t()); });
}

double TimeDeviceCopy(const std::string& device, int64_t bytes, int repeats) {
  const c10::InferenceMode guard;
  const at::Tensor from = at::randn({bytes / 2}, Bf16On(device));
  at::Tensor to = at::empty_like(from);
  return TimeQueued(to, repeats, [&] { to.copy_(from, true); });
}

double TimeHostToDevice(const std::string& device, int64_t bytes, int repeats) {
  const c10::InferenceMode guard;
  at::Tensor to = at::randn({bytes / 2}, Bf16On(device));
  const at::Tensor from = to.cpu().pin_memory();
  return TimeQueued(to, repeats, [&] { to.copy_(from, true); });
}

}  // namespace holdfast
