// SPDX-License-Identifier: Apache-2.0
//
// Devices: what may be asked for, what is chosen of what there is, and what is said where there is none. No GPU is needed: what the worker would find is
// made by hand.
#include "daemon/node/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace holdfast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kGiB = uint64_t{1} << 30;

DeviceProbe Host(uint32_t gpus) {
  DeviceProbe p;
  p.cuda = {.library = true, .init = 0, .driver = 13000, .runtime = 13000, .count = gpus, .torch = gpus > 0};
  for (uint32_t i = 0; i < gpus; ++i) {
    p.devices.push_back({.label = "NVIDIA H200", .numerics = "cuda/bf16/NVIDIA H200/sm_90/fused/libtorch-2.11.0", .total_bytes = 140 * kGiB, .free_bytes = 139 * kGiB, .asked = true});
  }
  return p;
}

Result<std::vector<Device>> Pick(const std::string& wanted, const DeviceProbe& probe) {
  const auto names = ParseDevices(wanted);
  if (!names.ok()) return names.error();
  return PickDevices(*names, probe);
}
std::string Refusal(const std::string& wanted, const DeviceProbe& probe = Host(2)) {
  const auto picked = Pick(wanted, probe);
  if (picked.ok()) return "not refused";
  EXPECT_EQ(picked.code(), ErrorCode::kInvalidArgument);
  return picked.error().message;
}

TEST(ParseDevices, NamesAndLists) {
  EXPECT_THAT(*ParseDevices("auto"), ElementsAre("auto"));
  EXPECT_THAT(*ParseDevices("cpu"), ElementsAre("cpu"));
  EXPECT_THAT(*ParseDevices("cuda"), ElementsAre("cuda:0"));
  EXPECT_THAT(*ParseDevices("cuda:1,cuda"), ElementsAre("cuda:1", "cuda:0"));
  EXPECT_THAT(*ParseDevices("cpu,cpu"), ElementsAre("cpu:0", "cpu:1"));
  EXPECT_THAT(*ParseDevices("cpu,cuda:3,cpu"), ElementsAre("cpu:0", "cuda:3", "cpu:1"));
  EXPECT_THAT(*ParseDevices("cuda:all,cpu"), ElementsAre("cuda:all", "cpu"));
}

TEST(ParseDevices, RefusesWhatIsNone) {
  for (const char* wanted : {"", ",", "cpu,", "gpu", "cuda:", "cuda:x", "cuda:01", "cuda:1234", "cuda:-1", "cpu:0", "cpu cuda", "cuda:0;rm"}) {
    EXPECT_EQ(ParseDevices(wanted).code(), ErrorCode::kInvalidArgument) << wanted;
  }
  EXPECT_THAT(Refusal("cuda,cuda"), HasSubstr("cuda:0 is named twice"));
  EXPECT_THAT(Refusal("cuda:1,cpu,cuda:1"), HasSubstr("cuda:1 is named twice"));
  EXPECT_THAT(Refusal("auto,cpu"), HasSubstr("auto stands alone"));
  EXPECT_THAT(Refusal("cuda:all,cuda:0"), HasSubstr("cuda:all"));
  std::string many = "cpu";
  for (size_t i = 0; i < kDevicesMax; ++i) many += ",cpu";
  EXPECT_THAT(Refusal(many), HasSubstr("at most 64 devices"));
}

TEST(PickDevices, AllThatAreThere) {
  const auto all = Pick("cuda:all", Host(8));
  ASSERT_TRUE(all.ok()) << all.error().message;
  EXPECT_EQ(all->size(), 8u);
  EXPECT_EQ(NamesOf(*all), "cuda:0,cuda:1,cuda:2,cuda:3,cuda:4,cuda:5,cuda:6,cuda:7");
  EXPECT_THAT(Refusal("cuda:all", Host(0)), HasSubstr("shows no device"));
}

TEST(PickDevices, FreeMemoryIsWhatIsPlannedWith) {
  DeviceProbe host = Host(2);
  host.devices[1].free_bytes = 20 * kGiB;   // somebody else has the rest
  const auto two = Pick("cuda:0,cuda:1", host);
  ASSERT_TRUE(two.ok());
  EXPECT_EQ((*two)[0].memory_bytes, 139 * kGiB);
  EXPECT_EQ((*two)[1].memory_bytes, 20 * kGiB);
  EXPECT_EQ((*two)[1].total_bytes, 140 * kGiB);
  host.devices[1].free_bytes = 0;
  EXPECT_GT((*Pick("cuda:1", host))[0].memory_bytes, 0u);   // 0 would mean: it has none of its own
}

TEST(PickDevices, AnIntegratedGpuLivesInTheMachinesMemory) {
  DeviceProbe spark = Host(1);
  spark.devices[0].integrated = true;
  const auto gpu = Pick("cuda", spark);
  ASSERT_TRUE(gpu.ok());
  EXPECT_EQ((*gpu)[0].memory_bytes, 0u);
  EXPECT_FALSE((*gpu)[0].is_cpu());
}

TEST(SpeedsOf, EveryThreadOfACpuCountsAndACoreIsCountedOnce) {
  const std::vector<Device> one = {{.name = "cpu", .numerics = "n"}}, two = {{.name = "cpu:0", .numerics = "n"}, {.name = "cpu:1", .numerics = "n"}};
  EXPECT_THAT(SpeedsOf(one, {100}, 8, 8), ElementsAre(800));
  EXPECT_THAT(SpeedsOf(one, {100}, 3, 8), ElementsAre(300));
  EXPECT_THAT(SpeedsOf(one, {100}, 20, 8), ElementsAre(800));
  EXPECT_THAT(SpeedsOf(two, {100, 100}, 4, 8), ElementsAre(400, 400));
  EXPECT_THAT(SpeedsOf(two, {100, 100}, 8, 8), ElementsAre(400, 400));   // --threads 8 for each: they take turns
  EXPECT_THAT(SpeedsOf(two, {100, 100}, 1, 1), ElementsAre(50, 50));
  const std::vector<Device> mixed = {{.name = "cpu", .numerics = "n"}, {.name = "cuda:0", .numerics = "m"}};
  EXPECT_THAT(SpeedsOf(mixed, {100, 9000}, 8, 8), ElementsAre(800, 9000));
}

TEST(PickDevices, SaysWhichIsNotThere) {
  EXPECT_THAT(Refusal("cuda:5"), AllOf(HasSubstr("--device cuda:5"), HasSubstr("there are cuda:0 NVIDIA H200, cuda:1 NVIDIA H200")));
  EXPECT_THAT(Refusal("cuda:0,cuda:2"), HasSubstr("--device cuda:2"));
}

TEST(PickDevices, ABrokenOneIsNamedWithWhatTheDriverSaid) {
  DeviceProbe host = Host(2);
  host.devices[1].error = 214;
  EXPECT_THAT(Refusal("cuda:0,cuda:1", host), AllOf(HasSubstr("cuda:1"), HasSubstr("ECC"), HasSubstr("214")));
  EXPECT_TRUE(Pick("cuda:0", host).ok());
  host.devices[1].error = 2;
  EXPECT_THAT(Refusal("cuda:1", host), AllOf(HasSubstr("used up by others"), HasSubstr("GB")));
  host.devices[1].error = 46;
  EXPECT_THAT(Refusal("cuda:1", host), HasSubstr("busy"));
}

TEST(PickDevices, ADriverTooOldIsCalledThat) {
  DeviceProbe host = Host(1);
  host.cuda.driver = 12020;
  host.cuda.torch = false;
  const std::string said = Refusal("cuda", host);
  EXPECT_THAT(said, AllOf(HasSubstr("driver is too old"), HasSubstr("it serves CUDA 12.2"), HasSubstr("needs CUDA 13.0"), HasSubstr("update the driver")));
  EXPECT_THAT(said, Not(HasSubstr("no CUDA device")));
  host.cuda.init = 35;                        // it may say so itself
  EXPECT_THAT(Refusal("cuda", host), HasSubstr("it serves CUDA 12.2"));
  host.cuda = {.library = true, .init = 0, .driver = 13000, .runtime = 13020, .count = 1, .torch = true};
  EXPECT_TRUE(Pick("cuda", host).ok());       // the same major version, and libtorch works with it
  host.cuda.torch = false;
  EXPECT_THAT(Refusal("cuda", host), HasSubstr("driver is too old"));
}

TEST(PickDevices, SaysWhyThereIsNoCuda) {
  DeviceProbe host = Host(1);
  host.cuda.library = false;
  EXPECT_THAT(Refusal("cuda", host), HasSubstr("no NVIDIA driver is installed"));
  host = Host(1);
  host.cuda.runtime = 0;
  EXPECT_THAT(Refusal("cuda", host), HasSubstr("libtorch of this build has no CUDA"));
  host = Host(0);
  host.cuda.init = 803;
  EXPECT_THAT(Refusal("cuda", host), HasSubstr("without a reboot"));
  host = Host(0);
  host.cuda.init = 802;
  EXPECT_THAT(Refusal("cuda", host), HasSubstr("fabricmanager"));
  host = Host(2);
  host.cuda.torch = false;
  EXPECT_THAT(Refusal("cuda", host), HasSubstr("libtorch sees none"));
}

TEST(PickDevices, AutoFallsBackToTheCpuAndSaysWhyWhereAGpuWasMeant) {
  EXPECT_EQ((*Pick("auto", Host(2)))[0].name, "cuda:0");
  DeviceProbe host = Host(1);
  host.cuda.driver = 12020;
  host.cuda.torch = false;
  auto cpu = Pick("auto", host);
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ((*cpu)[0].name, "cpu");
  EXPECT_THAT((*cpu)[0].note, HasSubstr("driver is too old"));
  cpu = Pick("auto", DeviceProbe{});
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ((*cpu)[0].name, "cpu");
  EXPECT_EQ((*cpu)[0].note, "");
}

TEST(ShareMemory, DevicesOfTheMachineShareWhatItHas) {
  const auto gpus = *Pick("cuda:0,cuda:1", Host(2)), mixed = *Pick("cpu,cuda,cpu", Host(1)), cpu = *Pick("cpu", Host(0));
  EXPECT_THAT(ShareMemory(gpus, {}, 10 * kGiB), ElementsAre(139 * kGiB / 100 * 95, 139 * kGiB / 100 * 95));
  EXPECT_THAT(ShareMemory(gpus, 20 * kGiB, 10 * kGiB), ElementsAre(20 * kGiB, 20 * kGiB));
  EXPECT_THAT(ShareMemory(mixed, 20 * kGiB, 100 * kGiB), ElementsAre(10 * kGiB, 20 * kGiB, 10 * kGiB));
  EXPECT_THAT(ShareMemory(cpu, {}, 100 * kGiB), ElementsAre(100 * kGiB / 100 * 95));
}

TEST(DeviceProbe, SurvivesItsJson) {
  DeviceProbe host = Host(2);
  host.devices[0].integrated = true;
  host.devices[1].error = 719;
  host.cuda.init = 999;
  const auto again = DeviceProbe::FromJson(host.ToJson());
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_EQ(again->ToJson(), host.ToJson());
  EXPECT_FALSE(DeviceProbe::FromJson(Json::object()).ok());
  EXPECT_FALSE(DeviceProbe::FromJson(Json{{"cuda", 3}}).ok());
  EXPECT_FALSE(DeviceProbe::FromJson(Json{{"cuda", Json::object()}, {"devices", 1}}).ok());
}

// What torch and CUDA say, of each kind: less of it would do, or this process is of no use any more.
TEST(DeviceError, MemoryThatRanOutIsToldFromADeviceThatBroke) {
  for (const char* what : {"CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.81 GiB", "CUDA error: out of memory\nCUDA kernel errors might be",
                           "CUDA: allocating pinned memory: out of memory", "[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
                           "std::bad_alloc", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                           "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"}) {
    EXPECT_EQ(DeviceError("forward", what).code, ErrorCode::kResourceExhausted) << what;
  }
  for (const char* what : {"CUDA error: unspecified launch failure", "CUDA error: an illegal memory access was encountered", "CUDA error: uncorrectable ECC error encountered",
                           "CUDA error: device-side assert triggered", "CUDA error: no kernel image is available for execution on the device",
                           "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx", "CUDA error: the launch timed out and was terminated",
                           "CUDA error: too many resources requested for launch", "CUDA error: unknown error", "CUDA error: invalid device ordinal"}) {
    EXPECT_EQ(DeviceError("forward", what).code, ErrorCode::kInternal) << what;
  }
  EXPECT_EQ(DeviceError("loading x", "one line\nand another").message, "loading x: one line");
}

}  // namespace
}  // namespace holdfast
