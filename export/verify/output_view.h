// SPDX-License-Identifier: Apache-2.0
//
// What the checks of verify share: the directory as it was opened, what its configs say, and its modules sorted into
// quantized linears (sites), fused sets and everything else. Each Check* function belongs to one group of codes,
// fills in what later groups need, and reports into the sink. Errors are I/O errors only.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "export/format/hf_config.h"
#include "export/format/safetensors.h"
#include "export/verify/rules.h"

namespace holdfast {

struct ConfigFacts {
  OutputLayout layout = OutputLayout::kModelopt;
  bool understood = false;               // exclude and weight_only can be relied on
  bool weight_only = false;              // W4A16_NVFP4
  bool kv_declared = false;
  std::vector<std::string> exclude;
  std::optional<bool> tied;              // tie_word_embeddings
  std::optional<uint64_t> layers;        // num_hidden_layers
  bool Excludes(const std::string& module) const { return IsLeftOut(layout, exclude, module); }
  const SiteNames& names() const { return NamesIn(layout); }
};

struct SiteView {                        // one quantized linear as the file holds it
  std::string module;
  std::string unit;                      // scope of its set: "layer 3", or the prefix up to the layer number
  uint64_t rows = 0, cols = 0;           // [out, in]
  uint32_t plan_set = 0;                 // of the plan; unused without one
  const TensorInfo* weight = nullptr;
  const TensorInfo* scale = nullptr;
  const TensorInfo* scale2 = nullptr;
  const TensorInfo* input = nullptr;
  bool readable = false;                 // weight, scale and scale2 have the right dtype and shape
  float scale2_value = 0, input_value = 0;  // as stored; filled by CheckValues; 0 when unreadable
};

struct PlainView {                       // a tensor that is not quantized
  enum class Kind : uint8_t { kLinear, kEmbedding, kHead, kNorm, kOther };
  const TensorInfo* tensor = nullptr;
  Kind kind = Kind::kOther;
  bool tied_copy = false;                // lm_head.weight that a tied model does not need
};

struct OutputView {
  OutputView(FileSystem& fs_in, std::string dir_in, const VerifyOptions& options_in, FindingSink& sink_in)
      : fs(fs_in), dir(std::move(dir_in)), options(options_in), sink(sink_in) {}

  FileSystem& fs;
  const std::string dir;
  const VerifyOptions& options;
  FindingSink& sink;

  std::map<std::string, uint64_t> names;                     // relative path -> size, SHA256SUMS left out
  std::vector<std::unique_ptr<SafetensorsFile>> shards;
  struct Place { const SafetensorsFile* file = nullptr; const TensorInfo* tensor = nullptr; };
  std::map<std::string, Place> tensors;
  ConfigFacts config;
  std::vector<SiteView> sites;
  std::vector<std::vector<size_t>> sets;                     // of indices into `sites`; every site is in one
  std::vector<PlainView> plain;

  std::atomic<uint64_t> bytes_done{0};
  uint64_t bytes_total = 0;

  const TensorInfo* Find(const std::string& name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : it->second.tensor;
  }
  // Reads part of a tensor and counts it as progress.
  Status Read(const TensorInfo& t, uint64_t offset, std::span<uint8_t> out) {
    bytes_done += out.size();
    return tensors.at(t.name).file->file().Read(t.offset + offset, out);
  }
  void Tick() const {
    if (options.on_progress) options.on_progress(bytes_done, bytes_total);
  }
  uint32_t threads() const { return std::min(std::max(options.threads, 1u), kThreadsMax); }

  static constexpr uint32_t kThreadsMax = 16;                // times a few buffers of kStreamBytes bounds the memory
  static constexpr uint64_t kStreamBytes = 4u << 20;
};

// V001-V005: lists the directory and hashes every file against SHA256SUMS.
Status CheckDirectory(OutputView* view);
// V006-V010: opens the shards and the index, fills `shards` and `tensors`.
Status CheckShards(OutputView* view);
// V020-V032, V037-V039: the two configs, fills `config`.
Status CheckConfigs(OutputView* view);
// V033-V049: names, dtypes, shapes and the exclude list against them; fills `sites` and `plain`.
Status CheckTensors(OutputView* view);
// V060-V070: reads every tensor once; fills `sets` and the scalars of the sites.
Status CheckValues(OutputView* view);
// V080-V082: quantizes the source again and compares.
Status CheckAgainstSource(OutputView* view);
// Bytes that CheckAgainstSource will read, for the progress; 0 without a source.
uint64_t SourceBytesToRead(const OutputView& view);

// The siblings that engines fuse into one matrix, by name: q/k/v, gate/up, w1/w3, q_a/kv_a. Empty: not fused with anything.
struct FusedName { std::string set, parent; };
std::optional<FusedName> FusedNameOf(const std::string& module);
std::string ShapeText(const std::vector<uint64_t>& shape);
std::string FloatText(float x);

}  // namespace holdfast
