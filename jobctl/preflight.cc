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
#include "daemon/core/placement.h"
#include "daemon/node/job_driver.h"
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

Result<OutputLayout> LayoutAsked(const std::optional<std::string>& name) {
  if (!name) return OutputLayout::kModelopt;
  const auto layout = name->empty() ? Result<OutputLayout>(InvalidArgument("it is empty; there are modelopt and compressed-tensors")) : ParseLayout(*name);
  if (!layout.ok()) return Annotate(layout.error(), "--layout");
  return *layout;
}

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

std::string NumericsOf(const std::vector<Device>& devices) {
  const auto alike = [&](const Device& d) { return d.numerics == devices.front().numerics; };
  return std::all_of(devices.begin(), devices.end(), alike) ? devices.front().numerics : kAnyNumerics;
}

Result<NewJob> PrepareNewJob(FileSystem& fs, const RunOptions& options, const std::string& numerics, uint32_t threads, WeightScan weights) {
  NewJob job;
  const std::string config_path = JoinPath(options.source, "config.json");
  const auto config_bytes = fs.ReadFile(config_path, 64u << 20);
  if (!config_bytes.ok()) {
    return InvalidArgument("--source " + options.source + ": " + config_bytes.error().message + "; a Hugging Face model directory with config.json and *.safetensors is needed");
  }
  HOLDFAST_ASSIGN(const Json config, ParseJson(AsText(*config_bytes), config_path));
  HOLDFAST_ASSIGN(job.decoder, ParseDecoder(config, config_path));
  HOLDFAST_ASSIGN(const Recipe recipe, ParseRecipe(options.recipe.value_or("nvfp4")));
  HOLDFAST_ASSIGN(const OutputLayout layout, LayoutAsked(options.layout));
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
  spec.numerics = numerics;
  if (layout != OutputLayout::kModelopt) spec.layout = LayoutName(layout);
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

Status CompareWithJob(FileSystem& fs, const RunOptions& o, const JobSpec& job, const std::vector<Device>& devices) {
  if (!o.resume) {
    if (o.source != job.source) return Changed("--source", job.source, o.source);
    if (o.out != job.out) return Changed("--out", job.out, o.out);
    const std::string recipe = o.recipe.value_or("nvfp4");
    if (recipe != job.recipe) return Changed("--recipe", job.recipe, recipe);
    HOLDFAST_ASSIGN(const OutputLayout layout, LayoutAsked(o.layout));
    HOLDFAST_ASSIGN(const OutputLayout had, ParseLayout(job.layout));
    if (layout != had) {
      return InvalidArgument(std::string("--layout: this job was begun with ") + LayoutName(had) + ", this line says " + LayoutName(layout) +
                             "; when it is done, `jobctl export RUN_DIR --layout " + LayoutName(layout) + " --out OTHER` writes that from the same calibration");
    }
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
  for (const Device& device : devices) {
    if (device.numerics != job.numerics && job.numerics != kAnyNumerics) return Changed("--device", job.numerics, device.numerics + " (" + device.name + ")");
  }
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

Result<DeviceCut> CutForDevices(const RunOptions& options, const DecoderSpec& decoder, const Plan& plan, uint32_t seq_len, const std::vector<Device>& devices,
                                uint32_t threads) {
  DeviceCut cut{.ranges = {}, .order = devices};
  const Device& first = devices.front();
  const auto alike = [&](const Device& d) {    // what is free of them differs a little
    return d.numerics == first.numerics && d.total_bytes == first.total_bytes && d.memory_bytes / 8 * 9 >= first.memory_bytes && first.memory_bytes / 8 * 9 >= d.memory_bytes;
  };
  const std::vector<uint64_t> memory = ShareMemory(devices, options.memory, MemAvailableBytes());
  if (std::all_of(devices.begin(), devices.end(), alike)) {
    HOLDFAST_ASSIGN(cut.ranges, CutStages(plan.layers, {}, std::min<uint32_t>(plan.layers, static_cast<uint32_t>(devices.size()))));
    return cut;
  }
  HOLDFAST_ASSIGN(const std::vector<uint64_t> speeds, MeasureSpeeds(devices, threads));
  std::vector<NodeView> seats;
  for (size_t i = 0; i < devices.size(); ++i) {
    NodeView& seat = seats.emplace_back();
    seat.name = devices[i].name;
    seat.memory_bytes = memory[i];
    seat.numerics = devices[i].numerics;
    seat.host_bytes = devices[i].memory_bytes > 0 ? UINT64_MAX : 0;   // what of the machine's is used by others may be given back
    seat.speed = speeds[i];
  }
  const auto placed = CutAndPlace(plan.layers, seats, LeastMemoryOf(decoder, plan, seq_len));
  if (!placed.ok()) return InvalidArgument("--device " + options.device + ": " + placed.error().message);
  cut.order.clear();
  for (const PlacedRange& r : *placed) {
    cut.ranges.push_back(r.layers);
    cut.order.push_back(*std::find_if(devices.begin(), devices.end(), [&](const Device& d) { return d.name == r.node; }));
  }
  return cut;
}

Result<std::vector<LayerRange>> CutFor(const RunOptions& options, const DecoderSpec& decoder, const Plan& plan, uint32_t seq_len, uint32_t threads,
                                       std::vector<Device>* devices) {
  const bool said = options.stages || !options.shard_layers.empty();
  if (said || devices->size() == 1) return CutStages(plan.layers, options.shard_layers, options.stages.value_or(1));
  HOLDFAST_ASSIGN(DeviceCut cut, CutForDevices(options, decoder, plan, seq_len, *devices, threads));
  *devices = std::move(cut.order);
  return std::move(cut.ranges);
}

uint32_t ThreadsOfStages(const RunOptions& options, uint32_t cores, const std::vector<Device>& devices) {
  return options.threads > 0 ? options.threads : std::max<uint32_t>(1, cores / static_cast<uint32_t>(devices.size()));
}

namespace {

// Devices that have their memory together, and the stages that work there.
struct Pool {
  std::string name;                 // of the device; "" = the machine
  uint64_t allowed = 0;
  std::vector<ResourcePlan::Stage*> stages;
  uint64_t Total(const WorkerSize& size) const {
    uint64_t sum = name.empty() ? HostOf(size) : 0;   // of a GPU without memory of its own
    for (const auto* s : stages) sum += s->memory.Total(size.threads, size.window, size.layers, size.cuts);
    return sum;
  }
  uint64_t Beside(const WorkerSize& size) const { return name.empty() ? 0 : HostOf(size); }

 private:
  uint64_t HostOf(const WorkerSize& size) const {
    uint64_t sum = 0;
    for (const auto* s : stages) sum += s->memory.Host(size.threads, size.window, size.cuts);
    return sum;
  }
};

std::vector<Pool> PoolsOf(ResourcePlan* r, const RunOptions& options, const std::vector<Device>& devices) {
  std::map<std::string, Pool> pools;
  for (auto& s : r->stages) {
    const Device& device = *std::find_if(devices.begin(), devices.end(), [&](const Device& d) { return d.name == s.device; });
    const bool own = device.memory_bytes > 0;
    Pool& pool = pools[own ? device.name : ""];
    pool.name = own ? device.name : "";
    pool.allowed = options.memory.value_or(own ? device.memory_bytes / 100 * kMemoryShare : MemAvailableBytes());
    pool.stages.push_back(&s);
  }
  std::vector<Pool> all;
  for (auto& [name, pool] : pools) all.push_back(std::move(pool));
  return all;
}

// Where nobody said --memory, the machine's may be overdrawn: what others use there may be given back. A device's is not.
Status CheckFloor(const Pool& pool, const RunOptions& options, const std::vector<Device>& devices) {
  const uint64_t floor = pool.Total({.window = 1, .threads = 1, .layers = 1});
  const std::string bytes = FormatSize(floor) + " (" + std::to_string(floor) + " bytes): one sample on one thread through one layer at a time, in " +
                            std::to_string(pool.stages.size()) + " stage(s)";
  if (options.memory && floor > *options.memory) {
    return InvalidArgument("--memory " + FormatSize(*options.memory) + ": this plan needs at least " + bytes + (pool.name.empty() ? "" : " on " + pool.name) + ". Give --memory " +
                           std::to_string((floor + 999'999) / 1'000'000) + "M or more, or a smaller --seq-len");
  }
  const auto device = std::find_if(devices.begin(), devices.end(), [&](const Device& d) { return d.name == pool.name; });
  if (device == devices.end() || floor <= device->memory_bytes) return OkStatus();
  const std::string used = device->total_bytes > device->memory_bytes ? " free of " + FormatSize(device->total_bytes) : "";
  return InvalidArgument("--device " + pool.name + ": it has " + FormatSize(device->memory_bytes) + used + ", this plan needs at least " + bytes +
                         ". Free some of it (see `nvidia-smi`), take a larger device or --device cpu, or a smaller --seq-len");
}

}  // namespace

Result<ResourcePlan> PlanResources(const RunOptions& options, const DecoderSpec& decoder, const Plan& plan, const JobSpec& job,
                                   const std::vector<Device>& devices, uint32_t threads) {
  ResourcePlan r;
  const bool alone = plan.stages.size() == 1;   // nobody waits for its cuts: it may be streamed
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    const StagePlan& s = plan.stages[i];
    const Device& device = devices[i % devices.size()];
    r.stages.push_back({.plan = s, .memory = PlanMemory(decoder, plan, s.first_layer, s.last_layer, job.seq_len, device.matmul, ProcessorOf(device.name)), .size = {}, .device = device.name});
    r.memory_minimum += r.stages.back().memory.Total(1, 1, 1);
  }
  uint64_t boundaries = r.stages.size() - 1;   // whose cuts lie on disk at once
  std::vector<Pool> pools = PoolsOf(&r, options, devices);
  const uint64_t host = HostShare(MemAvailableBytes(), pools.size());
  for (Pool& pool : pools) {
    HOLDFAST_TRY(CheckFloor(pool, options, devices));
    uint32_t longest = 1, wanted = 1;
    for (const auto* s : pool.stages) {
      longest = std::max(longest, s->memory.layers);
      wanted = std::max(wanted, alone ? s->memory.layers_wanted : s->memory.layers);
    }
    const WorkerSize size = LargestThatFits(PreferredSize(threads, wanted, job.samples), longest, alone ? Neighbours::kNone : Neighbours::kSome,
                                            [&](const WorkerSize& s) { return pool.Total(s) <= pool.allowed && pool.Beside(s) <= host; });
    for (auto* s : pool.stages) {
      s->size = size;
      s->size.layers = std::min(size.layers, s->memory.layers);
      if (s->streamed()) boundaries += 2;
    }
    r.memory_needed += pool.Total(size);
    r.memory_host += pool.Beside(size);
    r.memory_allowed += pool.allowed;
    r.tight = r.tight || pool.Total(size) > pool.allowed;
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
