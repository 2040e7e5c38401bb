// SPDX-License-Identifier: Apache-2.0
//
// The way of hidden states into packs. Whether they are compressed is decided by what took less time lately: a fast local disk takes the raw
// values sooner than they are compressed, a file server behind gigabit Ethernet does not.
#pragma once

#include <array>
#include <mutex>
#include <optional>
#include <string>

#include "ledger/base/clock.h"
#include "ledger/fold/run_state.h"
#include "ledger/pack/pack.h"

namespace holdfast {

// Which codec comes next. Pure. Both are tried first; after that the slower one gets another chance now and then.
class CodecChoice {
 public:
  Codec Next();
  void Took(Codec codec, uint64_t bytes, uint64_t ns);

 private:
  struct Rate {
    Codec codec;
    double ns_per_byte = 0;   // 0: not known. Half of it is the latest write
  };
  std::array<Rate, 2> rates_{Rate{Codec::kBf16Planes}, Rate{Codec::kStored}};
  uint32_t chosen_ = 0;
};

// How the cut that this sample leaves behind `last_layer` was written; nullopt: it was not.
std::optional<Codec> WrittenAs(const RunState& state, uint32_t sample, uint32_t last_layer);

// Thread safe.
class CutWriter {
 public:
  CutWriter(FileSystem& fs, const Clock& clock, RunLayout layout, const Nonce& incarnation, std::string stream)
      : fs_(fs), clock_(clock), layout_(std::move(layout)), incarnation_(incarnation), stream_(std::move(stream)) {}
  // `hidden`: [tokens, hidden] bf16. When this returns they are durable; an error is the storage's. `as`: how it was written before, if it was: packs
  // that were lost come back under their old names.
  Result<std::vector<PackManifest>> Write(ByteSpan hidden, std::optional<Codec> as);

 private:
  FileSystem& fs_;
  const Clock& clock_;
  const RunLayout layout_;
  const Nonce incarnation_;
  const std::string stream_;
  std::mutex mutex_;
  CodecChoice choice_;   // guarded by mutex_
};

}  // namespace holdfast
