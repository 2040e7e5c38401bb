// SPDX-License-Identifier: Apache-2.0
#include "tests/fsck/tiny_run.h"

#include <gtest/gtest.h>

#include "export/format/safetensors.h"
#include "export/merge/merge.h"
#include "export/shard/evict.h"
#include "ledger/base/process_identity.h"
#include "ledger/fold/seal.h"
#include "ledger/pack/pack.h"

namespace holdfast::testing {
namespace {

void Must(const Status& s) {
  if (!s.ok()) fprintf(stderr, "%s\n", s.error().message.c_str());
  HOLDFAST_CHECK(s.ok());
}

template <class T>
T Must(Result<T> r) {
  if (!r.ok()) fprintf(stderr, "%s\n", r.error().message.c_str());
  HOLDFAST_CHECK(r.ok());
  return std::move(*r);
}

constexpr TinyOptions kModel = {.layers = 2, .hidden = 64, .intermediate = 64, .kv = 32, .vocab = 64};

}  // namespace

TinyRun::TinyRun(const RunOptions& options)
    : dir(), layout(""), options_(options), model_(kModel), incarnation_(Nonce::Random()) {
  job_.uuid = Nonce::Random();
  dir = options.root.empty() ? temp_.path() + "/job.run" : RootLayout(options.root).JobDir(id());
  source = temp_.path() + "/source";
  out = temp_.path() + "/out";
  layout = RunLayout(dir);
  Must(fs.MakeDirs(layout.TmpDir(incarnation_)));
  Must(EnsureFormat(fs, layout, incarnation_));
  MakeSource();
  if (Reached(Until::kJob)) Submit();
  for (uint32_t stage = 0; stage < 2 && Reached(Until::kSamples); ++stage) Calibrate(stage);
  if (options.omit_late) OmitLate();
  for (uint32_t stage = 0; stage < 2 && Reached(Until::kEvicted); ++stage) Evict(stage);
  for (uint32_t stage = 0; stage < 2 && Reached(Until::kSealed); ++stage) Seal(stage);
  if (Reached(Until::kMerged)) Merge();
  writers_.clear();
  state_.reset();
}

void TinyRun::MakeSource() {
  Must(fs.MakeDirs(source));
  WriteSafetensors(source + "/model.safetensors", model_.source);
  const OrderedJson config = {{"architectures", {"LlamaForCausalLM"}}, {"num_hidden_layers", 2}, {"tie_word_embeddings", false}, {"eos_token_id", 1}};
  Spill(source + "/config.json", AsBytes(config.dump(2)));
  const auto file = Must(SafetensorsFile::Open(fs, source + "/model.safetensors"));
  plan_ = model_.plan;
  for (UnitPlan& unit : plan_.units) {
    for (TensorPlan& t : unit.tensors) {
      const TensorInfo* info = file->Find(t.name);
      t.dtype = info->dtype;
      t.offset = info->offset;
      t.bytes = info->bytes;
    }
  }
  plan_.stages = {{StageId(0), 0, 1}, {StageId(1), 1, 2}};
  const auto pin = [&](const std::string& name, const Digest& header) {
    const FileInfo info = Must(fs.Stat(source + "/" + name));
    return SourceFile{name, info.size, info.mtime_ns, Sha256(Slurp(source + "/" + name)), header};
  };
  job_.weights = {pin("model.safetensors", file->header_sha256())};
  job_.sidecars = {pin("config.json", Digest{})};
}

std::unique_ptr<StreamWriter> TinyRun::Own(const std::string& stream, std::vector<Record> with_claim) {
  StreamWriter::Options options;
  options.job = job_.uuid;
  options.claim.incarnation = incarnation_;
  options.claim.node = "test";
  options.claim.reason = "start";
  return Must(StreamWriter::Open(fs, layout, clock_, state_->ReaderOf(stream),
                                 [this, stream](const Record& r, const Slot& s) { return state_->Apply(stream, r, s); }, options, std::move(with_claim)));
}

void TinyRun::Submit() {
  job_.source = source;
  job_.out = out;
  job_.calib = "calib.jsonl";
  job_.recipe = "nvfp4";
  job_.architecture = "LlamaForCausalLM";
  job_.numerics = "test";
  job_.samples = options_.samples;
  job_.skip_samples = options_.omit_sample == UINT32_MAX ? 0 : 1;
  job_.seq_len = 8;
  job_.shard_bytes = 30000;
  Sha256Hasher hasher;
  std::vector<Record> records;
  for (uint32_t s = 0; s < options_.samples; ++s) {
    tokens_.push_back({1, 2, static_cast<int32_t>(s), 4});
    Bytes length;
    PutLe<uint32_t>(&length, 4);
    hasher.Update(length);
    hasher.Update(EncodeTokens(tokens_.back()));
    Record r;
    r.key = {RecordClass::kJob, 0, s, 0, 1};
    r.payload = EncodeTokens(tokens_.back());
    records.push_back(r);
  }
  job_.tokens_sha256 = hasher.Finish();
  records.push_back(MakeControl({RecordClass::kJob, 0, 0, 0, 0}, job_.ToJson()));
  records.push_back(MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, plan_.ToJson()));
  Incarnation self;
  self.node = "test";
  self.nonce = incarnation_;
  const ProcessIdentity process = ThisProcess();
  self.hostname = process.hostname;
  self.machine_id = process.machine_id;
  self.boot_id = process.boot_id;
  self.pid = process.pid;
  self.start_ticks = process.start_ticks + (options_.alive ? 0 : 1);
  if (options_.introduce) records.push_back(MakeControl({RecordClass::kIncarnation, 0, 0, 0, 0}, self.ToJson()));
  StreamWriter::Options options;
  options.job = job_.uuid;
  options.claim.incarnation = incarnation_;
  options.claim.node = "test";
  options.claim.reason = "start";
  StreamReader reader(fs, layout, RunLayout::JobStream(), job_.uuid);
  const auto writer = Must(StreamWriter::Open(fs, layout, clock_, &reader, [](const Record&, const Slot&) { return OkStatus(); }, options, records));
  Must(writer->Append({MakeControl({RecordClass::kRenew, 0, 1, 1, 0}, Json{{"epoch", 1}})}));
  if (job_.skip_samples > 0 && !options_.omit_late) Omit(writer.get());
  state_ = std::make_unique<RunState>(fs, layout);
  Must(state_->Refresh());
}

void TinyRun::Omit(StreamWriter* job) {
  omitted_ = true;
  Must(job->Append({MakeControl({RecordClass::kOmit, 0, options_.omit_sample, 0, 0}, OmitRecord{options_.omit_sample, StageId(1), "ended 2 workers"}.ToJson())}));
}

void TinyRun::OmitLate() {
  Evict(0);
  Seal(0);
  writers_.erase(0);   // it has released its stream
  Omit(Own(RunLayout::JobStream()).get());
}

StreamWriter* TinyRun::Writer(uint32_t stage) {
  auto& writer = writers_[stage];
  if (writer == nullptr) writer = Own(RunLayout::StageStream(StageId(static_cast<uint16_t>(stage))));
  return writer.get();
}

void TinyRun::Calibrate(uint32_t stage) {
  const uint32_t sites = static_cast<uint32_t>(plan_.units[stage].sites.size());
  for (uint32_t s = 0; s < options_.samples; ++s) {
    if (stage == 1 && (s == options_.forget_sample || s == options_.omit_sample)) continue;
    SampleRecord r;
    r.sample = s;
    r.first_layer = stage;
    r.last_layer = stage + 1;
    r.numerics = "test";
    Bytes hidden(4 * 64 * 2);
    for (size_t i = 0; i < hidden.size(); ++i) hidden[i] = static_cast<uint8_t>(i * 7 + s);
    if (stage == 0) {
      r.input = Sha256(EncodeTokens(tokens_[s]));
      PackWriter packs(fs, layout, incarnation_, "cut");
      StoredTensor t;
      t.shape = {4, 64};
      Must(packs.AddTensor(Codec::kBf16Planes, hidden, &t));
      r.output = Cut{4, 64, Sha256(hidden), Must(packs.Finish())};
    } else {
      r.input = Sha256(hidden);
    }
    for (uint32_t i = 0; i < sites; ++i) r.amax.push_back(1.0f + static_cast<float>((s + i) % 5));
    if (options_.edit_sample) options_.edit_sample(stage, &r);
    Must(Writer(stage)->Append(r.ToRecords(StageId(static_cast<uint16_t>(stage)))));
  }
}

void TinyRun::Evict(uint32_t stage) {
  const auto model = Must(SourceModel::Open(fs, source));
  Must(state_->Refresh());
  EvictOptions options;
  options.incarnation = incarnation_;
  for (const uint32_t unit : UnitsOf(plan_, plan_.stages[stage])) {
    std::vector<float> amax;
    if (unit < plan_.layers) {
      const auto reduced = state_->ReducedAmax(unit);
      amax = reduced.ok() ? *reduced : std::vector<float>(plan_.units[unit].sites.size(), 1.0f);
    }
    LayerRecord e = Must(EvictUnit(fs, layout, *model, plan_, plan_.units[unit], amax, options));
    if (!amax.empty()) e.omitted = Omitted();
    if (options_.edit_layer) options_.edit_layer(&e);
    Must(Writer(stage)->Append({MakeControl({RecordClass::kLayer, static_cast<uint16_t>(stage), unit, 0, 0}, e.ToJson())}));
  }
}

void TinyRun::Seal(uint32_t stage) {
  Must(state_->Refresh());
  SealRecord z;
  z.samples = options_.samples;
  z.first_layer = stage;
  z.last_layer = stage + 1;
  z.omitted = Omitted();
  const auto root = SealRoot(*state_, stage, stage + 1, UnitsOf(plan_, plan_.stages[stage]));
  if (root.ok()) z.root = *root;
  Must(Writer(stage)->Append({MakeControl({RecordClass::kSeal, static_cast<uint16_t>(stage), 0, 0, 0}, z.ToJson())}));
  Must(Writer(stage)->ReleaseStream("done"));
}

void TinyRun::Merge() {
  Must(state_->Refresh());
  const auto writer = Own(RunLayout::MergeStream());
  MergeOptions options;
  options.incarnation = incarnation_;
  const Digest manifest = Must(RunMerge(fs, *state_, *writer, options));
  if (!Reached(Until::kDone)) return;
  DoneRecord done;
  done.manifest = manifest;
  done.report = Json::object();
  Must(writer->Append({MakeControl({RecordClass::kDone, 0, 0, 0, 0}, done.ToJson())}));
  Must(writer->ReleaseStream("done"));
  Must(fs.RemoveTree(layout.TmpDir()));
}

SegmentTrailer TinyRun::NextTrailer(const std::string& stream, uint64_t epoch) {
  SegmentTrailer t;
  t.seq = SlotCount(stream);
  t.epoch = epoch;
  t.job = job_.uuid;
  t.incarnation = incarnation_;
  t.commit = Nonce::Random();
  t.stream = StreamId(stream);
  if (t.seq > 0) {
    Digest prev;
    t.prev = Must(ReadSlot(fs, layout, stream, t.seq - 1, job_.uuid, &prev)).digest;
  }
  return t;
}

void TinyRun::AppendSlot(const std::string& stream, uint64_t epoch, std::vector<Record> records) {
  for (Record& r : records) r.epoch = epoch;
  const Segment segment = Must(BuildSegment(NextTrailer(stream, epoch), records));
  Bytes file(segment.env.bytes().begin(), segment.env.bytes().end());
  file.insert(file.end(), segment.trailer.begin(), segment.trailer.end());
  Spill(layout.Slot(stream, SlotCount(stream)), file);
}

void TinyRun::AppendRawSlot(const std::string& stream, uint64_t epoch, const std::vector<std::pair<Bytes, Bytes>>& entries, uint32_t records_said) {
  SegmentTrailer t = NextTrailer(stream, epoch);
  EnvBuilder builder = Must(EnvBuilder::Create(1u << 20));
  for (const auto& [key, value] : entries) Must(builder.Append(key, value));
  const EnvImage env = Must(std::move(builder).Seal(false));
  t.env_len = env.bytes().size();
  t.records = records_said;
  t.env_sha256 = Sha256(env.bytes());
  Bytes file(env.bytes().begin(), env.bytes().end());
  const Bytes trailer = t.Encode();
  file.insert(file.end(), trailer.begin(), trailer.end());
  Spill(layout.Slot(stream, t.seq), file);
}

FsckReport TinyRun::Fsck(bool deep, uint32_t threads) { return RunFsck(fs, dir, {.deep = deep, .threads = threads, .on_progress = {}}); }

uint32_t TinyRun::SlotCount(const std::string& stream) { return static_cast<uint32_t>(Must(fs.List(layout.StreamDir(stream))).size()); }

std::vector<std::string> TinyRun::PackFiles() {
  std::vector<std::string> files;
  for (const std::string& d : Must(fs.List(layout.PackDir()))) {
    for (const std::string& name : Must(fs.List(layout.PackDir() + "/" + d))) files.push_back(layout.PackDir() + "/" + d + "/" + name);
  }
  return files;
}

void TinyRun::Rewrite(const std::string& path, ByteSpan bytes) {
  (void)fs.Unlink(path);  // slots are read-only
  Spill(path, bytes);
}

void TinyRun::Delete(const std::string& path) { Must(fs.Unlink(path)); }

}  // namespace holdfast::testing
