// SPDX-License-Identifier: Apache-2.0
//
// Speed and memory of merge, and what the machine would allow. Makes a run directory whose packs hold a random quantized model; then, in
// each round and for each number of threads (pinned to as many cores): merge, cp(1) with the same fsyncs, and a copy that computes nothing -
// one thread reads, one writes, past the page cache where there is a disk. All begin with a cold cache. Every byte of the output is hashed
// twice (in its pack, in its file), so the limit is the slower of that copy and half of what the cores hash at best, two messages at a time.
// Usage: bench_merge [--gb 4.2] [--dir /tmp] [--threads 1,2] [--shard-gb 1] [--rounds 3]
#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <semaphore>
#include <string>
#include <thread>

#include "export/merge/merge.h"
#include "export/shard/output_plan.h"
#include "ledger/base/past_cache.h"
#include "ledger/base/sha256_pair.h"
#include "ledger/pack/pack.h"

namespace holdfast {
namespace {

constexpr uint64_t kHidden = 4096, kInner = 14336, kVocabulary = 32000, kKeyValue = 1024;

struct Flags {
  double gb = 4.2, shard_gb = 1;
  std::string dir = "/tmp";
  std::vector<uint32_t> threads = {1, 2};
  int rounds = 3;
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
  uint64_t stored_bytes = 0;  // of all chunks, as they lie in the packs

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
      for (const PackManifest& m : record.packs)
        for (const ChunkRef& c : m.chunks) stored_bytes += c.stored_len;
      Must(writer->Append({MakeControl({RecordClass::kLayer, 0, u.id, 0, 0}, record.ToJson())}));
    }
  }

  uint64_t Merge(uint32_t threads) {
    RunState state(fs, layout);
    Must(state.Refresh());
    const auto writer = Claim("merge", state.ReaderOf("merge"), &state);
    MergeOptions options;
    options.threads = threads;
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

void ForEachFile(const std::string& dir, const std::function<void(const std::string&)>& act) {
  for (const auto& e : std::filesystem::recursive_directory_iterator(dir))
    if (e.is_regular_file()) act(e.path());
}
void WithFile(const std::string& path, const std::function<void(int fd)>& act) {
  const int fd = open(path.c_str(), O_RDONLY);
  act(fd);
  close(fd);
}
void Forget(const std::string& dir) {
  sync();
  ForEachFile(dir, [](const std::string& path) {
    WithFile(path, [](int fd) { posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); });
  });
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
  ForEachFile(to, [](const std::string& path) { WithFile(path, [](int fd) { fsync(fd); }); });
}

// One thread reads 4 MiB at a time into one of four buffers, the other writes them.
void BareCopy(FileSystem& fs, const std::string& from, const std::string& to) {
  constexpr uint64_t kStep = 4u << 20;
  const auto in = Must(fs.Open(from));
  const auto out = Must(fs.Create(to, 0644));
  (void)GoPastCache(*in), (void)GoPastCache(*out);
  const uint64_t steps = (in->size() + kStep - 1) / kStep;
  const auto length = [&](uint64_t i) { return std::min(kStep, in->size() - i * kStep); };
  std::array<AlignedBuffer, 4> buffers;
  for (AlignedBuffer& b : buffers) b = AlignedBuffer(kStep);
  std::counting_semaphore<4> empty(4), full(0);
  std::jthread reader([&] {
    for (uint64_t i = 0; i < steps; ++i) {
      empty.acquire();
      Must(in->Read(i * kStep, {buffers[i % 4].get(), length(i)}));
      full.release();
    }
  });
  for (uint64_t i = 0; i < steps; ++i) {
    full.acquire();
    Must(out->Append({buffers[i % 4].get(), length(i)}));
    empty.release();
  }
  Must(out->Sync());
  Must(out->Close());
}
void BareCopyAll(FileSystem& fs, const std::string& from, const std::string& to) {
  std::filesystem::create_directories(to);
  ForEachFile(from, [&](const std::string& path) { BareCopy(fs, path, JoinPath(to, BaseName(path))); });
}

// What one core hashes: one message after the other, and two at a time.
double ShaMbPerSecond() {
  Bytes buffer(4u << 20, 0x5a);
  uint64_t bytes = 0;
  const double s = Seconds([&] {
    for (; bytes < (512u << 20); bytes += buffer.size()) buffer[0] ^= Sha256(buffer).bytes[0];
  });
  return static_cast<double>(bytes) / 1e6 / s;
}
double ShaPairMbPerSecond() {
  Bytes stream(4u << 20, 0x5a), value(4u << 20, 0x3c);
  uint64_t bytes = 0;
  Sha256PairHasher hasher;
  const double s = Seconds([&] {
    for (; bytes < (1024u << 20); bytes += stream.size() + value.size()) value[0] ^= hasher.UpdateBeside(stream, value).bytes[0];
  });
  return static_cast<double>(bytes) / 1e6 / s;
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

void PinTo(uint32_t cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (uint32_t c = 0; c < cores; ++c) CPU_SET(c, &set);
  sched_setaffinity(0, sizeof set, &set);
}

double Load() {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

struct Sample {
  double merge, cp, bare, sha, pair, cpu, peak;  // MB/s; seconds per GB; MB
};

Sample Measure(Bench* b, uint32_t threads) {
  Sample s{};
  PinTo(threads);
  s.sha = ShaMbPerSecond();
  s.pair = ShaPairMbPerSecond();
  std::filesystem::remove_all(b->layout.StreamDir("merge"));
  Forget(b->layout.root());
  ResetPeak();
  uint64_t bytes = 0;
  const double cpu = CpuSeconds();
  const double merge = Seconds([&] { bytes = b->Merge(threads); });
  const double mb = static_cast<double>(bytes) / 1e6;
  s.cpu = (CpuSeconds() - cpu) / mb * 1e3;
  s.peak = PeakMb();
  s.merge = mb / merge;
  const std::string out = b->root + "/out", copy = b->root + "/copy";
  const auto copied = [&](const std::function<void()>& work) {
    Forget(out);
    const double seconds = Seconds(work);
    std::filesystem::remove_all(copy);
    return mb / seconds;
  };
  s.cp = copied([&] { Cp(out, copy); });
  s.bare = copied([&] { BareCopyAll(b->fs, out, copy); });
  std::filesystem::remove_all(out);
  sync();
  return s;
}

double Median(std::vector<Sample> samples, double Sample::*field) {
  std::sort(samples.begin(), samples.end(), [&](const Sample& a, const Sample& b) { return a.*field < b.*field; });
  return samples[samples.size() / 2].*field;
}

void Print(const char* what, const Bench& b, const Sample& s, uint32_t threads, double hashes) {
  const double limit = std::min(s.bare, s.pair * threads / hashes);
  std::printf("%-7s %u  %6.0f  %6.0f  %6.0f  %6.0f  %6.0f  %6.0f    %4.2f    %4.2f  %5.2f  %5.0f\n", what, threads, s.merge, s.cp, s.bare,
              s.sha, s.pair, limit, s.merge / limit, s.merge / s.cp, s.cpu, s.peak);
  std::fflush(stdout);
}

int Run(const Flags& flags) {
  Bench b;
  b.flags = flags;
  b.root = flags.dir + "/holdfast-bench-merge-" + std::to_string(getpid());
  std::filesystem::create_directories(b.root);
  const double made = Seconds([&] { b.Fabricate(); });
  const double raw = static_cast<double>(OutputBytes(PlanOutput(b.plan, b.job.shard_bytes)));
  const double hashes = 1 + static_cast<double>(b.stored_bytes) / raw;  // of each byte of the output
  std::printf("%s: fabricated %.2f GB in %.1f s; load %.1f; each byte is hashed %.2f times\n"
              "MB/s:  cores  merge   cp+fs    disk  SHA-256   pair   limit  of limit  of cp  cpu s/GB  peak MB\n",
              flags.dir.c_str(), raw / 1e9, made, Load(), hashes);
  std::map<uint32_t, std::vector<Sample>> samples;
  for (int round = 1; round <= flags.rounds; ++round) {
    for (const uint32_t threads : flags.threads) {
      samples[threads].push_back(Measure(&b, threads));
      Print(("round " + std::to_string(round)).c_str(), b, samples[threads].back(), threads, hashes);
    }
  }
  for (const auto& [threads, all] : samples) {
    Print("median", b, {Median(all, &Sample::merge), Median(all, &Sample::cp), Median(all, &Sample::bare), Median(all, &Sample::sha),
                        Median(all, &Sample::pair), Median(all, &Sample::cpu), Median(all, &Sample::peak)}, threads, hashes);
  }
  std::printf("load %.1f\n", Load());
  std::filesystem::remove_all(b.root);
  return 0;
}

std::vector<uint32_t> Numbers(const std::string& text) {
  std::vector<uint32_t> numbers;
  for (size_t at = 0; at < text.size(); at = std::min(text.size(), text.find(',', at)) + 1)
    numbers.push_back(static_cast<uint32_t>(std::atoi(text.c_str() + at)));
  return numbers;
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
    if (flag == "--rounds") flags.rounds = std::atoi(argv[i + 1]);
    if (flag == "--threads") flags.threads = holdfast::Numbers(argv[i + 1]);
  }
  return holdfast::Run(flags);
}
