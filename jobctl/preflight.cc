// SPDX-License-Identifier: Apache-2.0
#include "jobctl/preflight.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <set>

#include "calib/model/numerics.h"
#include "calib/tokens/calibration_set.h"
#include "daemon/node/process.h"
#include "export/nvfp4/nvfp4.h"
#include "export/shard/output_plan.h"
#include "ledger/base/hash_file.h"
#include "ledger/base/parallel.h"

namespace holdfast {
namespace {

constexpr uint64_t kSidecarBytesMax = 512u << 20;

// Files that belong beside quantized weights: tokenizer, templates, processors, licence. Code is never copied.
bool IsSidecar(const std::string& name) {
  static const std::set<std::string> kNot = {"model.safetensors.index.json", "pytorch_model.bin.index.json", "hf_quant_config.json",
                                             "holdfast.json", "SHA256SUMS", "README.md", "trainer_state.json", "training_args.bin"};
  if (kNot.contains(name) || name.starts_with(".")) return false;
  const auto ends = [&](const char* e) { return name.ends_with(e); };
  if (ends(".json") || ends(".jinja") || ends(".model") || ends(".tiktoken")) return true;
  if (name == "vocab.txt" || name == "merges.txt") return true;
  return name.starts_with("LICENSE") || name.starts_with("NOTICE") || name.starts_with("USE_POLICY");
}

Result<std::vector<SourceFile>> PinSidecars(FileSystem& fs, const std::string& source) {
  std::vector<SourceFile> out;
  HOLDFAST_ASSIGN(const auto names, fs.List(source));
  for (const std::string& name : names) {
    if (!IsSidecar(name)) continue;
    const std::string path = JoinPath(source, name);
    HOLDFAST_ASSIGN(const FileInfo info, fs.Stat(path));
    if (info.is_directory) continue;
    HOLDFAST_ASSIGN(const Bytes bytes, fs.ReadFile(path, kSidecarBytesMax));
    out.push_back({.name = name, .size = bytes.size(), .mtime_ns = info.mtime_ns, .sha256 = Sha256(bytes), .header_sha256 = {}});
  }
  return out;
}

// Relative to the model directory, also where the index names files in folders below it.
std::string RelativeTo(const std::string& dir, const std::string& path) {
  return path.starts_with(dir + "/") ? path.substr(dir.size() + 1) : BaseName(path);
}

Result<std::vector<SourceFile>> PinWeights(FileSystem& fs, const SourceModel& source) {
  std::vector<SourceFile> out;
  for (const auto& file : source.files()) {
    HOLDFAST_ASSIGN(const FileInfo info, fs.Stat(file->path()));
    out.push_back({.name = RelativeTo(source.dir(), file->path()), .size = file->size(), .mtime_ns = info.mtime_ns,
                   .sha256 = {}, .header_sha256 = file->header_sha256()});
  }
  return out;
}

Status CheckFinite(const SafetensorsFile& file, const TensorInfo& t) {
  if (t.dtype != DType::kBF16 && t.dtype != DType::kF16 && t.dtype != DType::kF32) return OkStatus();
  constexpr uint64_t kStep = 8u << 20;
  Bytes buffer(std::min<uint64_t>(kStep, t.bytes));
  for (uint64_t at = 0; at < t.bytes; at += kStep) {
    const auto part = std::span(buffer).first(std::min<uint64_t>(kStep, t.bytes - at));
    HOLDFAST_TRY(file.file().Read(t.offset + at, part));
    const auto amax = WeightAmax(t.dtype, part, t.name);
    if (!amax.ok()) return Annotate(amax.error(), file.path());
  }
  return OkStatus();
}

// Whole-file digests and a look at every weight, before anything starts.
Status ScanWeights(const SourceModel& source, uint32_t threads, std::vector<SourceFile>* pinned) {
  struct Task {
    size_t file;
    const TensorInfo* tensor;  // null: the digest of the file
  };
  std::vector<Task> tasks;
  for (size_t f = 0; f < source.files().size(); ++f) tasks.push_back({f, nullptr});
  for (size_t f = 0; f < source.files().size(); ++f) {
    for (const TensorInfo& t : source.files()[f]->tensors()) tasks.push_back({f, &t});
  }
  return ParallelFor(threads, tasks.size(), [&](size_t i) -> Status {
    const SafetensorsFile& file = *source.files()[tasks[i].file];
    if (tasks[i].tensor != nullptr) return CheckFinite(file, *tasks[i].tensor);
    HOLDFAST_ASSIGN((*pinned)[tasks[i].file].sha256, HashFile(file.file(), PageCache::kKeep));
    return OkStatus();
  });
}

Error Changed(const std::string& argument, const std::string& was, const std::string& is) {
  return InvalidArgument(argument + ": this job was begun with " + was + ", this line says " + is +
                         "; that would change the result. Use the first line again, `jobctl resume`, or another --out for a new job");
}

Status SourceChanged(const std::string& path) {
  return InvalidArgument(path + ": source changed since the job began; restore it and type the same line again, or begin a new job with another --out");
}

}  // namespace

std::string AbsolutePath(const std::string& path) {
  std::string p = path;
  if (p.empty() || p[0] != '/') {
    char cwd[4096];
    if (::getcwd(cwd, sizeof cwd) != nullptr) p = JoinPath(cwd, p);
  }
  std::vector<std::string> parts;   // lexical: "a/./b//c/.." is "a/b"
  for (size_t at = 0; at <= p.size();) {
    const size_t slash = std::min(p.find('/', at), p.size());
    const std::string part = p.substr(at, slash - at);
    if (part == ".." && !parts.empty()) parts.pop_back();
    else if (!part.empty() && part != "." && part != "..") parts.push_back(part);
    at = slash + 1;
  }
  std::string out;
  for (const std::string& part : parts) out += "/" + part;
  return out.empty() ? "/" : out;
}

Result<NewJob> PrepareNewJob(FileSystem& fs, const RunOptions& options, const Device& device, uint32_t threads, WeightScan weights) {
  NewJob job;
  const std::string config_path = JoinPath(options.source, "config.json");
  const auto config_bytes = fs.ReadFile(config_path, 64u << 20);
  if (!config_bytes.ok()) {
    return InvalidArgument("--source " + options.source + ": " + config_bytes.error().message + "; a Hugging Face model directory with config.json and *.safetensors is needed");
  }
  HOLDFAST_ASSIGN(const Json config, ParseJson(AsText(*config_bytes), config_path));
  HOLDFAST_ASSIGN(job.decoder, ParseDecoder(config, config_path));
  HOLDFAST_ASSIGN(const Recipe recipe, ParseRecipe(options.recipe.value_or("nvfp4")));
  HOLDFAST_ASSIGN(const auto source, SourceModel::Open(fs, options.source));
  HOLDFAST_ASSIGN(job.plan, BindModel(job.decoder, recipe, *source));

  JobSpec& spec = job.spec;
  HOLDFAST_ASSIGN(spec.weights, PinWeights(fs, *source));
  std::future<Status> scan;
  if (weights == WeightScan::kNow && source->total_bytes() <= kScanBytesMax) {   // beside tokenization
    scan = std::async(std::launch::async, [&] { return ScanWeights(*source, threads, &spec.weights); });
  }
  const auto set = ReadCalibration(fs, {.file = options.calib, .model_dir = options.source, .samples = options.samples,
                                        .seq_len = options.seq_len.value_or(kSeqLenDefault), .vocab = job.decoder.vocab, .python = {}, .helper = {}});
  const Status scanned = scan.valid() ? scan.get() : OkStatus();
  HOLDFAST_TRY(scanned);
  if (!set.ok()) return set.error();
  job.tokens = set->samples;

  spec.uuid = Nonce::Random();
  spec.source = options.source;
  spec.out = options.out;
  spec.calib = options.calib;
  spec.recipe = options.recipe.value_or("nvfp4");
  spec.architecture = job.decoder.architecture;
  spec.numerics = device.numerics;
  spec.config = std::string(AsText(*config_bytes));
  spec.samples = static_cast<uint32_t>(job.tokens.size());
  spec.samples_requested = options.samples.value_or(0);
  spec.skip_samples = options.skip_samples;
  if (spec.skip_samples >= spec.samples) {
    return InvalidArgument("--skip-samples " + std::to_string(spec.skip_samples) + ": the calibration set has " + std::to_string(spec.samples) +
                           " sample(s), and at least one must stay; give a smaller number");
  }
  spec.seq_len = options.seq_len.value_or(kSeqLenDefault);
  spec.shard_bytes = kShardBytesDefault;
  if (options.max_shard_size) {
    HOLDFAST_ASSIGN(spec.shard_bytes, ParseSize(*options.max_shard_size));
  }
  spec.calib_sha256 = set->file_sha256;
  spec.tokens_sha256 = set->tokens_sha256;
  HOLDFAST_ASSIGN(spec.sidecars, PinSidecars(fs, options.source));
  return job;
}

Status CompareWithJob(FileSystem& fs, const RunOptions& o, const JobSpec& job, const Device& device) {
  if (!o.resume) {
    if (o.source != job.source) return Changed("--source", job.source, o.source);
    if (o.out != job.out) return Changed("--out", job.out, o.out);
    const std::string recipe = o.recipe.value_or("nvfp4");
    if (recipe != job.recipe) return Changed("--recipe", job.recipe, recipe);
    const uint32_t seq_len = o.seq_len.value_or(kSeqLenDefault);
    if (seq_len != job.seq_len) return Changed("--seq-len", std::to_string(job.seq_len), std::to_string(seq_len));
    uint64_t shard_bytes = kShardBytesDefault;
    if (o.max_shard_size) {
      HOLDFAST_ASSIGN(shard_bytes, ParseSize(*o.max_shard_size));
    }
    if (shard_bytes != job.shard_bytes) return Changed("--max-shard-size", std::to_string(job.shard_bytes), std::to_string(shard_bytes));
    if (o.skip_samples != job.skip_samples) return Changed("--skip-samples", std::to_string(job.skip_samples), std::to_string(o.skip_samples));
    const uint32_t requested = o.samples.value_or(0);
    if (requested != job.samples_requested && requested != job.samples) {
      const auto say = [](uint32_t n) { return n == 0 ? std::string("the default") : std::to_string(n); };
      return Changed("--samples", say(job.samples_requested), say(requested));
    }
    const auto file = fs.Open(o.calib);   // the tokens are pinned: a file that is gone does no harm, another one would
    if (file.ok()) {
      HOLDFAST_ASSIGN(const Digest digest, HashFile(**file, PageCache::kKeep));
      if (digest != job.calib_sha256) return Changed("--calib", job.calib + " (SHA-256 " + job.calib_sha256.Hex().substr(0, 16) + ")",
                                                     o.calib + " (SHA-256 " + digest.Hex().substr(0, 16) + ")");
    }
  }
  if (device.numerics != job.numerics && job.numerics != kAnyNumerics) return Changed("--device", job.numerics, device.numerics);
  return OkStatus();
}

Status CheckSourceUnchanged(FileSystem& fs, const JobSpec& job, uint32_t threads) {
  const auto source = SourceModel::Open(fs, job.source);
  if (!source.ok()) return Annotate(source.error(), "source changed since the job began, or is gone");
  std::vector<const SourceFile*> suspects;
  for (const SourceFile& pinned : job.weights) {
    const std::string path = JoinPath(job.source, pinned.name);
    const auto file = SafetensorsFile::Open(fs, path);
    if (!file.ok()) return Annotate(file.error(), "source changed since the job began");
    if ((*file)->size() != pinned.size || (*file)->header_sha256() != pinned.header_sha256) return SourceChanged(path);
    HOLDFAST_ASSIGN(const FileInfo info, fs.Stat(path));
    if (info.mtime_ns != pinned.mtime_ns && !pinned.sha256.IsZero()) suspects.push_back(&pinned);
  }
  for (const SourceFile& pinned : job.sidecars) {
    const std::string path = JoinPath(job.source, pinned.name);
    const auto bytes = fs.ReadFile(path, kSidecarBytesMax);
    if (!bytes.ok()) return Annotate(bytes.error(), "source changed since the job began");
    if (Sha256(*bytes) != pinned.sha256) return SourceChanged(path);
  }
  return ParallelFor(threads, suspects.size(), [&](size_t i) -> Status {
    const std::string path = JoinPath(job.source, suspects[i]->name);
    HOLDFAST_ASSIGN(const auto file, fs.Open(path));
    HOLDFAST_ASSIGN(const Digest digest, HashFile(*file, PageCache::kKeep));
    return digest == suspects[i]->sha256 ? OkStatus() : SourceChanged(path);
  });
}

Result<ResourcePlan> PlanResources(const RunOptions& options, const DecoderSpec& decoder, const Plan& plan, const JobSpec& job,
                                   const Device& device, uint32_t threads) {
  ResourcePlan r;
  const bool alone = plan.stages.size() == 1;   // nobody waits for its cuts: it may be streamed
  uint32_t longest = 1, wanted = 1;
  for (const StagePlan& s : plan.stages) {
    r.stages.push_back({.plan = s, .memory = PlanMemory(decoder, plan, s.first_layer, s.last_layer, job.seq_len, device.matmul, ProcessorOf(device.name)), .size = {}});
    r.memory_minimum += r.stages.back().memory.Total(1, 1, 1);
    wanted = std::max(wanted, alone ? r.stages.back().memory.layers_wanted : s.last_layer - s.first_layer);
    longest = std::max(longest, s.last_layer - s.first_layer);
  }
  r.memory_allowed = options.memory.value_or(device.memory_bytes > 0 ? device.memory_bytes / 100 * kMemoryShare : MemAvailableBytes());
  const auto total = [&](const WorkerSize& size) {
    uint64_t sum = 0;
    for (const auto& s : r.stages) sum += s.memory.Total(size.threads, size.window, size.layers, size.cuts);
    return sum;
  };
  const auto beside = [&](const WorkerSize& size) {
    uint64_t sum = 0;
    for (const auto& s : r.stages) sum += s.memory.Host(size.threads, size.window, size.cuts);
    return sum;
  };
  const uint64_t host = MemAvailableBytes() / 100 * kMemoryShare;
  const WorkerSize size = LargestThatFits(PreferredSize(threads, wanted, job.samples), longest, alone ? Neighbours::kNone : Neighbours::kSome,
                                          [&](const WorkerSize& s) { return total(s) <= r.memory_allowed && beside(s) <= host; });
  uint64_t boundaries = r.stages.size() - 1;   // whose cuts lie on disk at once
  for (auto& s : r.stages) {
    s.size = size;
    s.size.layers = std::min(size.layers, s.memory.layers);
    if (s.streamed()) boundaries += 2;
  }
  r.memory_needed = total(size);
  r.memory_host = beside(size);
  if (options.memory && r.memory_minimum > *options.memory) {
    return InvalidArgument("--memory " + FormatSize(*options.memory) + ": this plan needs at least " + FormatSize(r.memory_minimum) + " (" +
                           std::to_string(r.memory_minimum) + " bytes): one sample on one thread through one layer at a time, in " + std::to_string(plan.stages.size()) +
                           " stage(s). Give --memory " + std::to_string((r.memory_minimum + 999'999) / 1'000'000) + "M or more, or a smaller --seq-len");
  }
  const OutputPlan output = PlanOutput(plan, job.shard_bytes);
  r.disk_out = output.total_size + (64u << 20);
  const uint64_t cut = static_cast<uint64_t>(job.seq_len) * plan.hidden_size * 2;
  r.disk_run = output.total_size + boundaries * job.samples * cut + (64u << 20);
  return r;
}

Status CheckSpace(FileSystem& fs, const ResourcePlan& resources, const std::string& run_dir, const std::string& out) {
  const auto existing = [&](std::string p) {   // the nearest ancestor that is there
    while (p.size() > 1 && !fs.Stat(p).ok()) p = DirName(p);
    return p;
  };
  const std::string run_at = existing(run_dir), out_at = existing(DirName(out));
  HOLDFAST_ASSIGN(const FileInfo run_info, fs.Stat(run_at));
  HOLDFAST_ASSIGN(const FileInfo out_info, fs.Stat(out_at));
  HOLDFAST_ASSIGN(const SpaceInfo run_space, fs.Space(run_at));
  HOLDFAST_ASSIGN(const SpaceInfo out_space, fs.Space(out_at));
  const bool same = run_info.device == out_info.device;
  const uint64_t run_need = resources.disk_run + (same ? resources.disk_out : 0);
  const auto lack = [](const std::string& dir, uint64_t need, uint64_t have) {
    return InvalidArgument("not enough space in " + dir + ": " + FormatSize(need) + " (" + std::to_string(need) + " bytes) still to be written, " +
                           FormatSize(have) + " free; make room for " + FormatSize(need - have) + " more, or choose another --run-dir / --out");
  };
  if (run_space.free_bytes < run_need) return lack(run_at, run_need, run_space.free_bytes);
  if (!same && out_space.free_bytes < resources.disk_out) return lack(out_at, resources.disk_out, out_space.free_bytes);
  return OkStatus();
}

}  // namespace holdfast
