// SPDX-License-Identifier: Apache-2.0
#include "calib/probe/probe.h"

#include <sys/resource.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "calib/model/decoder.h"
#include "calib/runner/runner.h"
#include "export/shard/evict.h"
#include "ledger/base/forwarding_file_system.h"
#include "ledger/codec/codec.h"
#include "ledger/pack/pack.h"

namespace holdfast {
namespace {

constexpr uint32_t kRoundsLeast = 3;                     // after one that does not count
constexpr uint64_t kForwardNs = 1'500'000'000;           // what a layer of a small model is measured for
constexpr uint64_t kCopyTriedBytes = 32u << 20;

uint64_t CpuNs() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto ns = [](const timeval& t) { return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_usec) * 1000; };
  return ns(usage.ru_utime) + ns(usage.ru_stime);
}

// Takes what is written and forgets it, but for how much it was; reads are real.
class Nowhere final : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;
  Result<std::unique_ptr<WritableFile>> Create(const std::string&, uint32_t) override { return std::unique_ptr<WritableFile>(new Sink()); }
  Status Link(const std::string&, const std::string&) override { return OkStatus(); }
  Status RenameExclusive(const std::string&, const std::string&) override { return OkStatus(); }
  Status Replace(const std::string&, const std::string&) override { return OkStatus(); }
  Status Unlink(const std::string&) override { return OkStatus(); }
  Status RemoveTree(const std::string&) override { return OkStatus(); }
  Status SyncDir(const std::string&) override { return OkStatus(); }
  Status MakeDirs(const std::string&) override { return OkStatus(); }

 private:
  class Sink final : public WritableFile {
   public:
    Status Append(ByteSpan) override { return OkStatus(); }
    Status Sync() override { return OkStatus(); }
    Status Close() override { return OkStatus(); }
    void DropCache() override {}
  };
};

// bf16 values as a layer may meet them: around one in size, either sign. The same each time.
Bytes Hidden(uint64_t values, uint64_t seed) {
  Bytes bytes(values * 2);
  uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
  for (size_t i = 0; i < bytes.size(); i += 2) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    bytes[i] = static_cast<uint8_t>(x >> 8);                                                   // low bits of the mantissa
    bytes[i + 1] = static_cast<uint8_t>(0x3e | (x >> 16 & 1) | (x >> 17 & 1) << 7);            // 0.125 to 2, and its sign
  }
  return bytes;
}

class Probe {
 public:
  Probe(FileSystem& fs, const Clock& clock, const LayerQuestion& question) : fs_(fs), clock_(clock), ask_(question), begin_ns_(clock.MonotonicNs()) {}

  Result<LayerProbe> Run() {
    HOLDFAST_TRY(Open());
    DropPages();
    HOLDFAST_ASSIGN(probe_.load_cold_ns, Load());
    const uint64_t cpu = CpuNs();
    HOLDFAST_ASSIGN(probe_.load_ns, Load());
    probe_.load_cpu_ns = std::max<uint64_t>(1, CpuNs() - cpu);
    HOLDFAST_TRY(Compute());
    if (runner_->Resident() == nullptr) runner_.reset();   // as a worker does
    HOLDFAST_TRY(Evict());
    HOLDFAST_TRY(CopyThrough());
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    probe_.rss_peak_bytes = static_cast<uint64_t>(usage.ru_maxrss) * 1024;
    return std::move(probe_);
  }

 private:
  Status Open() {
    const std::string config_path = JoinPath(ask_.source, "config.json");
    HOLDFAST_ASSIGN(const Bytes config, fs_.ReadFile(config_path, 64u << 20));
    HOLDFAST_ASSIGN(const Json json, ParseJson(AsText(config), config_path));
    HOLDFAST_ASSIGN(spec_, ParseDecoder(json, config_path));
    HOLDFAST_ASSIGN(source_, SourceModel::Open(fs_, ask_.source));
    HOLDFAST_ASSIGN(plan_, BindModel(spec_, Recipe::kNvfp4, *source_));
    layer_ = spec_.layers / 2;
    for (const TensorPlan& t : plan_.units[layer_].tensors) probe_.layer_bytes += t.bytes;
    return OkStatus();
  }

  void DropPages() const {
    for (const TensorPlan& t : plan_.units[layer_].tensors) {
      const SourceModel::Place* place = source_->Find(t.name);
      if (place != nullptr) place->file->file().DropCache(place->tensor->offset, place->tensor->bytes);
    }
  }

  Result<uint64_t> Load() {
    runner_.reset();
    RunnerOptions options;
    options.first_layer = layer_;
    options.last_layer = layer_ + 1;
    options.load_threads = ask_.threads;
    options.device = ask_.device;
    std::vector<LoadedDigest> digests;
    const uint64_t begin = clock_.MonotonicNs();
    HOLDFAST_ASSIGN(runner_, LayerRangeRunner::Load(*source_, spec_, plan_, options, &digests));
    const uint64_t ns = Since(begin);
    for (const LoadedDigest& d : digests) digests_.insert(d.tensors.begin(), d.tensors.end());
    return ns;
  }

  Result<uint64_t> OneForward(const Bytes& hidden, const std::vector<int32_t>& ids) {
    const uint64_t begin = clock_.MonotonicNs();
    const auto done = layer_ == 0 ? runner_->ForwardTokens(ids, LayerRangeRunner::Output::kHidden)
                                  : runner_->ForwardHidden(hidden, ask_.tokens, LayerRangeRunner::Output::kHidden);
    HOLDFAST_TRY(done);
    return Since(begin);
  }

  // The first pass of each thread makes what later ones find made; it counts only where there was no time for another.
  Status ComputeOnThread(uint32_t thread, std::vector<uint64_t>* times, uint64_t* first) {
    const Bytes hidden = Hidden(static_cast<uint64_t>(ask_.tokens) * spec_.hidden, thread + 1);
    std::vector<int32_t> ids(layer_ == 0 ? ask_.tokens : 0);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 7919 + thread) % spec_.vocab);
    HOLDFAST_ASSIGN(*first, OneForward(hidden, ids));
    const uint64_t warm = clock_.MonotonicNs();
    while (times->size() < kForwardTimesMax / ask_.at_once && Since(begin_ns_) + *first < kProbeBudgetNs) {
      if (times->size() >= kRoundsLeast && Since(warm) > kForwardNs) break;
      HOLDFAST_ASSIGN(const uint64_t ns, OneForward(hidden, ids));
      times->push_back(ns);
    }
    return OkStatus();
  }

  Status Compute() {
    std::vector<std::vector<uint64_t>> times(ask_.at_once);
    std::vector<uint64_t> first(ask_.at_once);
    std::vector<Status> status(ask_.at_once, OkStatus());
    {
      std::vector<std::jthread> threads;
      for (uint32_t t = 0; t < ask_.at_once; ++t) threads.emplace_back([&, t] { status[t] = ComputeOnThread(t, &times[t], &first[t]); });
    }
    for (uint32_t t = 0; t < ask_.at_once; ++t) {
      HOLDFAST_TRY(status[t]);
      probe_.forward_ns.insert(probe_.forward_ns.end(), times[t].begin(), times[t].end());
    }
    if (probe_.forward_ns.empty()) probe_.forward_ns = first;
    std::sort(probe_.forward_ns.begin(), probe_.forward_ns.end());
    return OkStatus();
  }

  Status Evict() {
    Nowhere nowhere(fs_);
    EvictOptions options;
    options.threads = ask_.threads;
    options.incarnation = Nonce::Random();
    options.resident = runner_ == nullptr ? nullptr : runner_->Resident();
    options.expected = [this](const std::string& tensor) -> std::optional<Digest> {
      const auto known = digests_.find(tensor);
      return known == digests_.end() ? std::nullopt : std::optional(known->second);
    };
    const std::vector<float> amax(plan_.units[layer_].sites.size(), 1.0f);
    const uint64_t begin = clock_.MonotonicNs(), cpu = CpuNs();
    HOLDFAST_ASSIGN(const LayerRecord record, EvictUnit(nowhere, RunLayout("/"), *source_, plan_, plan_.units[layer_], amax, options));
    probe_.evict_ns = Since(begin);
    probe_.evict_cpu_ns = std::max<uint64_t>(1, CpuNs() - cpu);
    for (const PackManifest& p : record.packs) probe_.evict_bytes += p.file_size;
    return OkStatus();
  }

  // A piece of the embedding, the way eviction takes tensors that stay as they are.
  Status CopyThrough() {
    const SourceModel::Place* place = source_->Find(kEmbeddingName);
    if (place == nullptr) return InvalidArgument(ask_.source + ": no tensor " + kEmbeddingName);
    const Codec codec = CopyCodec(place->tensor->dtype);
    const uint64_t all = std::min(kCopyTriedBytes, place->tensor->bytes);
    Bytes buffer;
    const uint64_t begin = clock_.MonotonicNs();
    for (uint64_t at = 0; at < all; at += buffer.size()) {
      buffer.resize(std::min(kCopyBytes, all - at));
      HOLDFAST_TRY(place->file->file().Read(place->tensor->offset + at, buffer));
      const Encoded encoded = Encode(codec, buffer);
      (void)Sha256(encoded.bytes.empty() ? ByteSpan(buffer) : ByteSpan(encoded.bytes));
      (void)Sha256(buffer);
    }
    probe_.copy_bytes = all;
    probe_.copy_ns = Since(begin);
    return OkStatus();
  }

  uint64_t Since(uint64_t begin) const { return std::max<uint64_t>(1, clock_.MonotonicNs() - begin); }

  FileSystem& fs_;
  const Clock& clock_;
  const LayerQuestion& ask_;
  const uint64_t begin_ns_;
  DecoderSpec spec_;
  Plan plan_;
  std::unique_ptr<SourceModel> source_;
  uint32_t layer_ = 0;
  std::map<std::string, Digest> digests_;
  std::unique_ptr<LayerRangeRunner> runner_;
  LayerProbe probe_;
};

}  // namespace

Result<LayerProbe> ProbeLayer(FileSystem& fs, const Clock& clock, const LayerQuestion& question) { return Probe(fs, clock, question).Run(); }

}  // namespace holdfast
