// SPDX-License-Identifier: Apache-2.0
//
// What a node measures of one decoder layer before a job (calib/probe does it, in holdfast-worker), as the question and the answer travel between
// processes and lie in the cache. All numbers are counts of bytes, or nanoseconds of a clock that only goes forward.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ledger/base/json.h"
#include "ledger/base/result.h"

namespace holdfast {

struct LayerQuestion {
  std::string source;              // model directory
  std::string device = "cpu";
  uint32_t tokens = 0;             // of the sequences to compute
  uint32_t threads = 1;            // that load and quantize
  uint32_t at_once = 1;            // sequences that are computed at a time
  std::string Encode() const;
  static Result<LayerQuestion> Decode(const std::string& text);
};

struct LayerProbe {
  uint64_t layer_bytes = 0;        // of the layer's tensors in the source
  // Read, hashed, looked through and put where the matmuls want them: from the disk (as far as the kernel forgets pages when asked), again from the page
  // cache, and the processor time of the latter, all threads together.
  uint64_t load_cold_ns = 0, load_ns = 0, load_cpu_ns = 0;
  // One sequence through the layer while `at_once` of them are computed at a time, ascending; never empty.
  std::vector<uint64_t> forward_ns;
  // Quantized and packed, its source in the page cache, nothing written: wall and processor time, and what would have been written.
  uint64_t evict_ns = 0, evict_cpu_ns = 0, evict_bytes = 0;
  // What is copied through unchanged (embedding, head), as far as it was tried: hashed and compressed on one thread.
  uint64_t copy_bytes = 0, copy_ns = 0;
  uint64_t rss_peak_bytes = 0;     // of host memory, of the process
  uint64_t start_ns = 0;           // from the start of the program until it could begin, libraries included; whoever asked fills it in

  uint64_t forward_median_ns() const { return forward_ns[forward_ns.size() / 2]; }
  Json ToJson() const;
  // kInvalidArgument naming the field: missing, not a count, or beyond what can be (a day, an exabyte, nothing where there must be something).
  static Result<LayerProbe> FromJson(const Json& j, const std::string& what);
};

inline constexpr size_t kForwardTimesMax = 4096;

}  // namespace holdfast
