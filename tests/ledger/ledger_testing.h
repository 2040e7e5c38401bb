// SPDX-License-Identifier: Apache-2.0
//
// Small things that the ledger's tests share: a temporary directory, a clock that stands still, records to write.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <bit>
#include <filesystem>
#include <random>
#include <string>

#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"
#include "ledger/base/ids.h"
#include "ledger/records/records.h"

#define HOLDFAST_ASSERT_OK(expr)                                            \
  do {                                                                      \
    const auto& status_ = (expr);                                           \
    ASSERT_TRUE(status_.ok()) << status_.error().message;                   \
  } while (0)
#define HOLDFAST_EXPECT_OK(expr)                                            \
  do {                                                                      \
    const auto& status_ = (expr);                                           \
    EXPECT_TRUE(status_.ok()) << status_.error().message;                   \
  } while (0)

namespace holdfast {

class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/holdfast-test-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TempDir() {
    std::error_code ec;
    std::filesystem::remove_all(path_, ec);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class StillClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return 1; }
  uint64_t WallNs() const override { return 1700000000000000000ull; }
  void SleepMs(uint64_t) override {}
};

inline Nonce NonceOf(uint8_t fill) {
  Nonce n;
  n.bytes.fill(fill);
  return n;
}

inline Digest DigestOf(uint8_t fill) {
  Digest d;
  d.bytes.fill(fill);
  return d;
}

inline Bytes RandomBytes(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes b(n);
  for (uint8_t& x : b) x = static_cast<uint8_t>(random());
  return b;
}

// bf16 numbers as in a weight matrix: normal, so that their exponents compress.
inline Bytes Bf16Weights(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  Bytes b;
  for (size_t i = 0; i < count; ++i) PutLe<uint16_t>(&b, static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(random)) >> 16));
  return b;
}

inline Bytes F32Values(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  Bytes b;
  for (size_t i = 0; i < count; ++i) PutLe<uint32_t>(&b, std::bit_cast<uint32_t>(normal(random)));
  return b;
}

// A model of `layers` decoder layers with two sites each, and one source tensor a unit.
inline Plan SmallPlan(uint32_t layers, std::vector<StagePlan> stages) {
  Plan p;
  p.layers = layers;
  p.hidden_size = 8;
  p.stages = std::move(stages);
  for (uint32_t i = 0; i < layers + 2; ++i) {
    UnitPlan u;
    u.id = i;
    u.label = i < layers ? "layer " + std::to_string(i) : i == layers ? "embed" : "head";
    u.tensors.push_back({"t" + std::to_string(i), DType::kBF16, {4, 8}, 0, 64ull * i, 64});
    if (i < layers) u.sites = {{"model.layers." + std::to_string(i) + ".a", 0, 4, 8}, {"model.layers." + std::to_string(i) + ".b", 1, 4, 8}};
    p.units.push_back(std::move(u));
  }
  p.ignore = {"lm_head"};
  return p;
}

inline JobSpec SmallJob(const Nonce& uuid, uint32_t samples) {
  JobSpec j;
  j.uuid = uuid;
  j.source = "/models/small";
  j.out = "/models/small-nvfp4";
  j.calib = "/calib.jsonl";
  j.recipe = "nvfp4";
  j.architecture = "LlamaForCausalLM";
  j.numerics = "cpu/test";
  j.samples = samples;
  j.seq_len = 16;
  j.shard_bytes = 1u << 30;
  j.weights = {{"model.safetensors", 1000, 5, DigestOf(1), DigestOf(2)}};
  j.sidecars = {{"config.json", 10, 6, DigestOf(3), {}}};
  return j;
}

inline SampleRecord SmallSample(uint32_t sample, uint32_t first, uint32_t last, float scale = 1.0f) {
  SampleRecord s;
  s.sample = sample;
  s.first_layer = first;
  s.last_layer = last;
  s.input = DigestOf(9);
  s.numerics = "cpu/test";
  for (uint32_t i = 2 * first; i < 2 * last; ++i) s.amax.push_back(scale * static_cast<float>((sample * 7 + i * 3) % 11 + 1));
  return s;
}

}  // namespace holdfast
