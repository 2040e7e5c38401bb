// SPDX-License-Identifier: Apache-2.0
#include "calib/runner/cuda_names.h"

#include <dlfcn.h>

namespace holdfast {
namespace {

// cuda.h: the driver's C interface, stable since CUDA 1 (the _v2 since CUDA 4).
struct Driver {
  int (*version)(int*);
  int (*init)(unsigned);
  int (*count)(int*);
  int (*device)(int*, int);
  int (*name)(char*, int, int);
  int (*attribute)(int*, int, int);
  int (*memory)(size_t*, int);
  int (*retain)(void**, int);
  int (*release)(int);
  int (*push)(void*);
  int (*pop)(void**);
  int (*free_memory)(size_t*, size_t*);
};
constexpr int kMajor = 75, kMinor = 76, kIntegrated = 18;   // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, _INTEGRATED
constexpr int kNoSymbol = 500;                              // CUDA_ERROR_NOT_FOUND

template <class F>
bool Find(void* library, const char* symbol, F* out) {
  *out = reinterpret_cast<F>(dlsym(library, symbol));
  return *out != nullptr;
}

CudaDriver Open(Driver* d) {
  CudaDriver found;
  void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);   // never closed: torch uses it too
  found.library = library != nullptr;
  if (!found.library) return found;
  const bool whole = Find(library, "cuDriverGetVersion", &d->version) && Find(library, "cuInit", &d->init) && Find(library, "cuDeviceGetCount", &d->count) &&
                     Find(library, "cuDeviceGet", &d->device) && Find(library, "cuDeviceGetName", &d->name) &&
                     Find(library, "cuDeviceGetAttribute", &d->attribute) && Find(library, "cuDeviceTotalMem_v2", &d->memory) &&
                     Find(library, "cuDevicePrimaryCtxRetain", &d->retain) && Find(library, "cuDevicePrimaryCtxRelease_v2", &d->release) &&
                     Find(library, "cuCtxPushCurrent_v2", &d->push) && Find(library, "cuCtxPopCurrent_v2", &d->pop) && Find(library, "cuMemGetInfo_v2", &d->free_memory);
  found.init = whole ? d->init(0) : kNoSymbol;
  if (d->version != nullptr) d->version(&found.version);
  int count = 0;
  if (found.init == 0) found.init = d->count(&count);
  if (found.init == 0 && count > 0) found.count = static_cast<uint32_t>(count);
  return found;
}

}  // namespace

CudaDriver FindCudaDriver() {
  Driver driver{};
  return Open(&driver);
}

std::vector<CudaName> CudaNames() {
  Driver driver{};
  const int count = static_cast<int>(Open(&driver).count);
  std::vector<CudaName> names;
  for (int i = 0; i < count; ++i) {
    int device = 0, major = 0, minor = 0, integrated = 0;
    char name[256] = "unknown";
    driver.device(&device, i);
    driver.name(name, sizeof name - 1, device);
    driver.attribute(&major, kMajor, device);
    driver.attribute(&minor, kMinor, device);
    driver.attribute(&integrated, kIntegrated, device);
    size_t bytes = 0;
    driver.memory(&bytes, device);
    names.push_back({name, "sm_" + std::to_string(major) + std::to_string(minor), bytes, integrated != 0});
  }
  return names;
}

CudaMemory AskCudaMemory(size_t index) {
  Driver driver{};
  CudaMemory memory;
  memory.error = Open(&driver).init;
  int device = 0;
  void* context = nullptr;
  if (memory.error == 0) memory.error = driver.device(&device, static_cast<int>(index));
  if (memory.error == 0) memory.error = driver.retain(&context, device);
  if (memory.error != 0) return memory;
  size_t free_bytes = 0, total_bytes = 0;
  memory.error = driver.push(context);
  if (memory.error == 0) {
    memory.error = driver.free_memory(&free_bytes, &total_bytes);
    driver.pop(&context);
  }
  driver.release(device);
  memory.free_bytes = free_bytes;
  memory.total_bytes = total_bytes;
  return memory;
}

}  // namespace holdfast
