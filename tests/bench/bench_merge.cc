// SPDX-License-Identifier: Apache-2.0
//
// Speed and memory of merge: makes a run directory whose packs hold a random quantized model, merges it, then copies the output with
// cp(1) and the same fsyncs. Both read from a cold page cache. Usage: bench_merge [--gb 4.2] [--dir /tmp] [--threads N] [--shard-gb 2]
#include <fcntl.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <thread>

#include "export/merge/merge.h"
#include "export/shard/output_plan.h"
#include "ledger/pack/pack.h"

namespace holdfast {
namespace {

constexpr uint64_t kHidden = 4096, kInner = 14336, kVocabulary = 32000, kKeyValue = 1024;

struct Flags {
  double gb = 4.2, shard_gb = 2;
  std::string dir = "/tmp";
  uint32_t threads = std::max(1u, std::thread::hardware_concurrency());
};

template <class T>
T Must(Result<T> r) {
  if (r.ok()) return std::move(r).value();
  std::fprintf(stderr, "bench_merge: %s\n", r.error().message.c_str());
  std::exit(1);
}
void Must(const Status& s) {
  if (s.ok()) return;
  std::fprintf(stderr, "bench_merge: %s\n", s.error().message.c_str());
  std::exit(1);
}

TensorPlan Tensor(const std::string& name, std::vector<uint64_t> shape) {
  TensorPlan t;
  t.name = name;
  t.shape = std::move(shape);
  t.bytes = 2;
  for (const uint64_t d : t.shape) t.bytes *= d;
  return t;
}

Plan MakePlan(uint32_t layers) {
  struct Linear {
    const char* name;
    uint32_t set;
    uint64_t rows, cols;
  };
  const Linear linears[] = {
      {"self_attn.q_proj", 0, kHidden, kHidden},   {"self_attn.k_proj", 0, kKeyValue, kHidden},
      {"self_attn.v_proj", 0, kKeyValue, kHidden}, {"self_attn.o_proj", 1, kHidden, kHidden},
      {"mlp.gate_proj", 2, kInner, kHidden},       {"mlp.up_proj", 2, kInner, kHidden},
      {"mlp.down_proj", 3, kHidden, kInner}};
  Plan plan;
  plan.layers = layers;
  plan.hidden_size = kHidden;
  plan.ignore = {"lm_head", "model.embed_tokens"};
  plan.stages = {{StageId(0), 0, layers}};
  plan.units.resize(layers + 2);
  for (uint32_t l = 0; l < layers; ++l) {
    UnitPlan& u = plan.units[l];
    u.id = l;
    u.label = "layer " + std::to_string(l);
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    for (const Linear& x : linears) {
      u.tensors.push_back(Tensor(prefix + x.name + ".weight", {x.rows, x.cols}));
      u.sites.push_back({prefix + x.name, x.set, x.rows, x.cols});
    }
    u.tensors.push_back(Tensor(prefix + "input_layernorm.weight", {kHidden}));
    u.tensors.push_back(Tensor(prefix + "post_attention_layernorm.weight", {kHidden}));
  }
  plan.units[layers] = {
      layers, "embed", {Tensor("model.embed_tokens.weight", {kVocabulary, kHidden})}, {}};
  plan.units[layers + 1] = {
      layers + 1,
      "head",
      {Tensor("model.norm.weight", {kHidden}), Tensor("lm_head.weight", {kVocabulary, kHidden})},
      {}};
  return plan;
}

// As random as the real thing: codes do not compress, block scales to a half, bf16 to two thirds.
class Fabricator {
 public:
  Fabricator() {
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal(0, 0.02f);
    for (Bytes* b : {&codes_, &scales_, &bf16_}) b->resize(kChunkRawMax / 8 * 8);
    for (size_t i = 0; i + 8 <= codes_.size(); i += 8) {
      const uint64_t v = random();
      std::memcpy(codes_.data() + i, &v, 8);
    }
    for (uint8_t& s : scales_) s = static_cast<uint8_t>(100 + normal(random) * 300);
    for (size_t i = 0; i + 2 <= bf16_.size(); i += 2) {
      const float f = normal(random);
      std::memcpy(bf16_.data() + i, reinterpret_cast<const uint8_t*>(&f) + 2, 2);
    }
  }
  Result<StoredTensor> Add(PackWriter* packs, const TensorInfo& t) {
    Bytes& pattern = t.dtype == DType::kBF16 ? bf16_ : t.dtype == DType::kF8E4M3 ? scales_ : codes_;
    const Codec codec = t.dtype == DType::kBF16     ? Codec::kBf16Planes
                        : t.dtype == DType::kF8E4M3 ? Codec::kZstd
                                                    : Codec::kStored;
    StoredTensor stored{t.name, t.dtype, t.shape, {}, {}};
    for (uint64_t at = 0; at < t.bytes; at += pattern.size()) {
      std::memcpy(pattern.data(), &++counter_,
                  4);  // no two chunks alike: packs are named by content
      HOLDFAST_ASSIGN(const auto piece,
                      packs->Add(codec, ByteSpan(pattern).first(
                                            std::min<uint64_t>(pattern.size(), t.bytes - at))));
      stored.pieces.push_back(piece);
    }
    return stored;
  }

 private:
  Bytes codes_, scales_, bf16_;
  uint32_t counter_ = 0;
};

struct Bench {
  Flags flags;
  PosixFileSystem fs;
  RealClock clock;
  std::string root;
  RunLayout layout{""};
  JobSpec job;
  Plan plan;

  std::unique_ptr<StreamWriter> Claim(const std::string& stream, StreamReader* reader,
                                      RunState* state, std::vector<Record> with_claim = {}) {
    StreamWriter::Options options;
    options.job = job.uuid;
    options.claim.incarnation = Nonce::Random();
    options.claim.node = "bench";
    options.claim.reason = "start";
    const auto apply = [stream, state](const Record& r, const Slot& s) {
      return state == nullptr ? OkStatus() : state->Apply(stream, r, s);
    };
    return Must(
        StreamWriter::Open(fs, layout, clock, reader, apply, options, std::move(with_claim)));
  }

  void Fabricate() {
    const double layer_gb =
        (2 * kHidden * kHidden + 2 * kKeyValue * kHidden + 3.0 * kInner * kHidden) * 0.5625 / 1e9;
    const double outer_gb = 4.0 * kVocabulary * kHidden / 1e9;
    plan = MakePlan(static_cast<uint32_t>(std::max(1.0, (flags.gb - outer_gb) / layer_gb + 0.5)));
    layout = RunLayout(root + "/run");
    job.uuid = Nonce::Random();
    job.source = root + "/src";
    job.out = root + "/out";
    job.recipe = "nvfp4";
    job.shard_bytes = static_cast<uint64_t>(flags.shard_gb * 1e9);
    Must(fs.MakeDirs(job.source));
    const std::string config = "{\"bos_token_id\": 1}";
    auto file = Must(fs.Create(job.source + "/config.json", 0644));
    Must(file->Append(AsBytes(config)));
    job.sidecars.push_back({"config.json", config.size(), 0, Sha256(AsBytes(config)), {}});
    Must(EnsureFormat(fs, layout, Nonce::Random()));
    StreamReader jobs(fs, layout, "job", job.uuid), stage(fs, layout, "stage.00", job.uuid);
    Claim("job", &jobs, nullptr,
          {MakeControl({RecordClass::kJob, 0, 0, 0, 0}, job.ToJson()),
           MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, plan.ToJson())});
    const auto writer = Claim("stage.00", &stage, nullptr);
    Fabricator fabricator;
    for (const UnitPlan& u : plan.units) {
      PackWriter packs(fs, layout, Nonce::Random(), u.label);
      LayerRecord record;
      record.unit = u.id;
      for (const OutputTensor& t : OutputTensorsOf(plan, u))
        record.tensors.push_back(Must(fabricator.Add(&packs, t.info)));
      record.packs = Must(packs.Finish());
      Must(writer->Append({MakeControl({RecordClass::kLayer, 0, u.id, 0, 0}, record.ToJson())}));
    }
  }

  uint64_t Merge() {
    RunState state(fs, layout);
    Must(state.Refresh());
    const auto writer = Claim("merge", state.ReaderOf("merge"), &state);
    MergeOptions options;
    options.threads = flags.threads;
    uint64_t bytes = 0;
    options.on_progress = [&](const MergeProgress& p) { bytes = p.bytes_total; };
    Must(RunMerge(fs, state, *writer, options));
    return bytes;
  }
};

double Seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void ForEachFile(const std::string& dir, const std::function<void(int fd)>& act) {
  for (const auto& e : std::filesystem::recursive_directory_iterator(dir)) {
    if (!e.is_regular_file()) continue;
    const int fd = open(e.path().c_str(), O_RDONLY);
    act(fd);
    close(fd);
  }
}
void Forget(const std::string& dir) {
  sync();
  ForEachFile(dir, [](int fd) { posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); });
}

void Cp(const std::string& from, const std::string& to) {
  const pid_t pid = fork();
  if (pid == 0) {
    execlp("cp", "cp", "-r", from.c_str(), to.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  if (status != 0) std::exit(1);
  ForEachFile(to, [](int fd) { fsync(fd); });
}

double CpuSeconds() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  return static_cast<double>(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
         static_cast<double>(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

// Peak resident memory since the last reset, in MB.
double PeakMb() {
  char line[256];
  long kb = 0;
  FILE* f = std::fopen("/proc/self/status", "r");
  while (std::fgets(line, sizeof line, f) != nullptr) std::sscanf(line, "VmHWM: %ld kB", &kb);
  std::fclose(f);
  return static_cast<double>(kb) * 1024 / 1e6;
}
void ResetPeak() {
  malloc_trim(0);
  FILE* f = std::fopen("/proc/self/clear_refs", "w");
  if (f == nullptr) return;
  std::fputs("5", f);
  std::fclose(f);
}

int Run(const Flags& flags) {
  Bench b;
  b.flags = flags;
  b.root = flags.dir + "/holdfast-bench-merge-" + std::to_string(getpid());
  std::filesystem::create_directories(b.root);
  const double made = Seconds([&] { b.Fabricate(); });
  Forget(b.root + "/run");
  ResetPeak();
  uint64_t bytes = 0;
  const double cpu_before = CpuSeconds();
  const double merge = Seconds([&] { bytes = b.Merge(); });
  const double cpu = CpuSeconds() - cpu_before;
  const double peak = PeakMb();
  Forget(b.root + "/out");
  const double cp = Seconds([&] { Cp(b.root + "/out", b.root + "/copy"); });
  const double mb = static_cast<double>(bytes) / 1e6;
  std::printf(
      "fabricated %.2f GB in %.1f s\nmerge  %7.1f MB/s  (%.2f s, %u threads, %.2f s of CPU, peak "
      "memory %.0f MB)\ncp     %7.1f MB/s  (%.2f s, with fsync)\n"
      "ratio  %.2f\n",
      mb / 1e3, made, mb / merge, merge, flags.threads, cpu, peak, mb / cp, cp, cp / merge);
  std::filesystem::remove_all(b.root);
  return 0;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  holdfast::Flags flags;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--gb") flags.gb = std::atof(argv[i + 1]);
    if (flag == "--shard-gb") flags.shard_gb = std::atof(argv[i + 1]);
    if (flag == "--dir") flags.dir = argv[i + 1];
    if (flag == "--threads") flags.threads = static_cast<uint32_t>(std::atoi(argv[i + 1]));
  }
  return holdfast::Run(flags);
}
