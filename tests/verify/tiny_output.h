// SPDX-License-Identifier: Apache-2.0
//
// A small, sound NVFP4 output of a random Llama-shaped model, kept as editable tensors and JSON documents so that a test can
// damage one thing and write the directory with fresh checksums.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "export/format/output_layout.h"
#include "export/format/safetensors.h"
#include "export/verify/verify.h"
#include "ledger/base/file_system.h"

namespace holdfast::testing {

struct StoredBytes {
  DType dtype = DType::kBF16;
  std::vector<uint64_t> shape;
  Bytes bytes;
};

struct TinyOptions {
  uint32_t layers = 2;
  uint64_t hidden = 64, intermediate = 128, kv = 32, vocab = 96;
  bool tied = false, mlp_only = false, weight_only = false, bias = false;
  DType dtype = DType::kBF16;
  uint32_t shards = 1;
  uint64_t seed = 1;
  OutputLayout layout = OutputLayout::kModelopt;
};

class TempDir {
 public:
  TempDir();
  ~TempDir();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class TinyOutput {
 public:
  explicit TinyOutput(const TinyOptions& options = {});

  Plan plan;                                       // what the architecture expects
  std::map<std::string, StoredBytes> source;       // of the source checkpoint
  std::map<std::string, StoredBytes> tensors;      // of the output
  std::map<std::string, uint32_t> shard_of;        // output tensor -> shard; absent: the last one
  OrderedJson config, hf_quant;
  bool with_config = true, with_hf_quant = true;

  OrderedJson& quant() { return config["quantization_config"]; }
  void SetExclude(const std::vector<std::string>& names);   // in both configs
  float Scalar(const std::string& name) const;
  void SetScalar(const std::string& name, float value);
  void Rename(const std::string& from, const std::string& to);

  // Writes output and source into fresh directories below `dir()` and returns the output's path.
  std::string Write();
  std::string WriteSource();
  const std::string& dir() const { return temp_.path(); }

  // Writes, then verifies, with or without the plan and the source.
  VerifyReport Verify();
  VerifyReport VerifyWithSource();
  VerifyReport VerifyWithoutPlan();

 private:
  void AddLinear(UnitPlan* unit, const std::string& module, uint32_t set, uint64_t rows, uint64_t cols, bool quantized);
  void AddPlain(UnitPlan* unit, const std::string& name, const std::vector<uint64_t>& shape);
  void Quantize(const UnitPlan& unit);
  void MakeConfigs();
  void MakeCompressedConfig();
  float Random();

  TinyOptions options_;
  uint64_t state_;
  TempDir temp_;
};

// Bytes of a file, and SHA256SUMS of a directory made again after a test has edited its files.
Bytes Slurp(const std::string& path);
void Spill(const std::string& path, ByteSpan bytes);
void WriteSums(const std::string& dir);
void WriteSafetensors(const std::string& path, const std::map<std::string, StoredBytes>& tensors);
VerifyReport VerifyDir(const std::string& dir, const Plan* plan, const std::string& source = "", uint32_t threads = 2);

}  // namespace holdfast::testing
