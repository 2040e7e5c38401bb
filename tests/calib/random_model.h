// SPDX-License-Identifier: Apache-2.0
//
// Model directories of any shape with random BF16 weights, written to a temporary place: for sizes that are too large to keep.
#pragma once

#include <string>

#include "calib/model/decoder.h"

namespace holdfast {

struct RandomShape {
  uint32_t layers = 2, heads = 4, kv_heads = 2, head_dim = 32;
  uint64_t hidden = 128, intermediate = 256, vocab = 512;
  uint64_t window = 0;       // MistralForCausalLM when given
  DType dtype = DType::kBF16;
  uint64_t seed = 1;
  const char* architecture = nullptr;   // another one
};

// A directory that goes away with the object.
class RandomModel {
 public:
  explicit RandomModel(const RandomShape& shape);
  ~RandomModel();
  RandomModel(const RandomModel&) = delete;
  std::string dir;
  Json config;
};

std::vector<int32_t> RandomIds(uint64_t seed, size_t count, uint64_t vocab);

}  // namespace holdfast
