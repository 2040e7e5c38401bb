// SPDX-License-Identifier: Apache-2.0
#include "calib/runner/cuda_names.h"

#include <dlfcn.h>

namespace holdfast {
namespace {

// cuda.h: the driver's C interface, stable since CUDA 1.
struct Driver {
  int (*init)(unsigned);
  int (*count)(int*);
  int (*device)(int*, int);
  int (*name)(char*, int, int);
  int (*attribute)(int*, int, int);
  int (*memory)(size_t*, int);
};
constexpr int kMajor = 75, kMinor = 76;   // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

template <class F>
bool Find(void* library, const char* symbol, F* out) {
  *out = reinterpret_cast<F>(dlsym(library, symbol));
  return *out != nullptr;
}

bool Open(Driver* d) {
  void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);   // never closed: torch uses it too
  return library != nullptr && Find(library, "cuInit", &d->init) && Find(library, "cuDeviceGetCount", &d->count) &&
         Find(library, "cuDeviceGet", &d->device) && Find(library, "cuDeviceGetName", &d->name) &&
         Find(library, "cuDeviceGetAttribute", &d->attribute) && Find(library, "cuDeviceTotalMem_v2", &d->memory) && d->init(0) == 0;
}

}  // namespace

std::vector<CudaName> CudaNames() {
  Driver driver{};
  int count = 0;
  if (!Open(&driver) || driver.count(&count) != 0) return {};
  std::vector<CudaName> names;
  for (int i = 0; i < count; ++i) {
    int device = 0, major = 0, minor = 0;
    char name[256] = "unknown";
    driver.device(&device, i);
    driver.name(name, sizeof name - 1, device);
    driver.attribute(&major, kMajor, device);
    driver.attribute(&minor, kMinor, device);
    size_t bytes = 0;
    driver.memory(&bytes, device);
    names.push_back({name, "sm_" + std::to_string(major) + std::to_string(minor), bytes});
  }
  return names;
}

}  // namespace holdfast
