// SPDX-License-Identifier: Apache-2.0
//
// Writes the seeds of the fuzzers, from the encoders where there is one:   make_fuzz_seeds tests/fuzz/seeds
// Other files that lie there are findings and stay.
#include <cstdio>
#include <string>

#include "daemon/wire/beat.h"
#include "daemon/wire/messages.h"
#include "export/format/hf_config.h"
#include "export/format/safetensors.h"
#include "ledger/base/sim_file_system.h"
#include "ledger/format/sealed_text.h"
#include "ledger/pack/pack.h"
#include "ledger/segment/segment.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/small_job.h"

namespace holdfast {
namespace {

using fuzz::FixedDigest;

std::string g_top;

void Save(const std::string& decoder, const std::string& name, ByteSpan content) {
  PosixFileSystem fs;
  fuzz::PutFile(fs, g_top + "/" + decoder + "/" + name, content);
}
void Save(const std::string& decoder, const std::string& name, const std::string& content) { Save(decoder, name, AsBytes(content)); }

Bytes Joined(std::initializer_list<ByteSpan> parts) {
  Bytes out;
  for (const ByteSpan p : parts) out.insert(out.end(), p.begin(), p.end());
  return out;
}

template <class T>
Bytes Le(T v) {
  Bytes out;
  PutLe<T>(&out, v);
  return out;
}

Nonce NonceOf(uint8_t fill) {
  Nonce n;
  n.bytes.fill(fill);
  return n;
}

// ---- models ----

void SaveSafetensors() {
  const SafetensorsLayout layout = LayOutSafetensors({{"a.weight", DType::kBF16, {2, 16}}, {"a.weight_scale", DType::kF8E4M3, {2, 1}}, {"b", DType::kF32, {}}});
  const ByteSpan text = ByteSpan(layout.header).subspan(8);
  Save("safetensors", "three-tensors", Joined({Le<uint64_t>(layout.file_size - layout.header.size()), text}));
  Bytes whole = layout.header;
  whole.resize(layout.file_size);
  Save("safetensors", "whole-file", whole);
  Save("safetensors", "empty-tensors", Joined({Le<uint64_t>(0), AsBytes(R"({"e":{"dtype":"U8","shape":[0,9],"data_offsets":[0,0]},"f":{"dtype":"I64","shape":[3,0],"data_offsets":[0,0]}})")}));
  const uint64_t big = 1ull << 62;
  Save("safetensors", "huge-shape", Joined({Le<uint64_t>(2 * big), AsBytes(R"({"a":{"dtype":"BF16","shape":[4611686018427387904],"data_offsets":[0,9223372036854775808]}})")}));
  Save("source_index", "two-files", MakeIndexJson(4, 32, {{"w.a", "model-1.safetensors"}, {"w.b", "model-1.safetensors"}, {"w.c", "model-2.safetensors"}, {"w.d", "model-2.safetensors"}}));
  Save("source_index", "one-file", MakeIndexJson(4, 32, {{"w.a", "model-1.safetensors"}, {"w.b", "model-1.safetensors"}}));
  Save("source_index", "outside", MakeIndexJson(4, 32, {{"w.c", "../outside.safetensors"}, {"w.d", "../outside.safetensors"}}));
}

constexpr char kLlama[] = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 256,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "max_position_embeddings": 512, "torch_dtype": "bfloat16",
 "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
 "tie_word_embeddings": true})";
constexpr char kMistral[] = R"({"architectures": ["MistralForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "vocab_size": 256, "num_hidden_layers": 3,
 "num_attention_heads": 4, "head_dim": 32, "sliding_window": 64, "dtype": "float16", "rope_parameters": {"rope_type": "yarn", "factor": 4, "rope_theta": 10000,
 "mscale": 1.0, "mscale_all_dim": 0.8}, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]})";
constexpr char kQwen[] = R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 48, "intermediate_size": 96, "vocab_size": 300, "num_hidden_layers": 2,
 "num_attention_heads": 6, "use_sliding_window": true, "sliding_window": 32, "max_window_layers": 1, "rope_scaling": {"type": "dynamic", "factor": 2.0}})";

void SaveConfigs() {
  Save("decoder", "llama", kLlama);
  Save("decoder", "mistral", kMistral);
  Save("decoder", "qwen2", kQwen);
  const QuantDescription q{.input_activations = true, .exclude = {"lm_head"}};
  Save("hf_config", "source", kLlama);
  Save("hf_config", "output", *MakeConfigJson(kLlama, q));
  Save("hf_config", "hf-quant-config", MakeHfQuantConfigJson(q));
  Save("hf_config", "odd-numbers", R"({ "a":1E400,"b" : -0.0, "c":[ ],"d":{},"quantization_config":null,"e":[[1,{"f\"\\":"\u00e9"}]]})");
}

void SaveCalibration() {
  Save("calibration", "three-kinds", "{\"input_ids\": [1, 2, 999]}\n{\"text\": \"na\\u00efve \xe2\x82\xac\"}\r\n{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n");
  Save("calibration", "byte-order-mark", "\xef\xbb\xbf{\"input_ids\": []}\n\n  \n{\"text\": \"\"}");
  Save("calibration", "beyond-the-vocabulary", "{\"input_ids\": [1, -2, 4294967296, 1.5, [3]]}");
}

// ---- ledger ----

Bytes ValueOf(RecordClass cls, Codec codec, Bytes payload) {
  Record r;
  r.key = {cls, 1, 2, 3, 0};
  r.codec = codec;
  r.epoch = 4, r.wall_ns = 5;
  r.payload = std::move(payload);
  return Joined({r.key.Encode(), EncodeRecordValue(r)});
}

void SaveValues() {
  Save("record_value", "stored", ValueOf(RecordClass::kClaim, Codec::kStored, {1, 2, 3}));
  Save("record_value", "zstd", ValueOf(RecordClass::kPlan, Codec::kZstd, Bytes(3000, 7)));
  Save("record_value", "bf16-planes", ValueOf(RecordClass::kLayer, Codec::kBf16Planes, Bytes(2000, 0x3f)));
  Save("record_value", "f32-planes", ValueOf(RecordClass::kSample, Codec::kF32Planes, Bytes(2000, 0x3f)));
  for (const Codec codec : {Codec::kZstd, Codec::kBf16Planes, Codec::kF32Planes}) {
    const Bytes raw(4000, 0x42);
    const Encoded e = Encode(codec, raw);
    Save("codec", "codec-" + std::to_string(static_cast<int>(codec)), Joined({Bytes{static_cast<uint8_t>(codec)}, Le<uint32_t>(4000), e.bytes}));
  }
  Save("codec", "stored", Joined({Bytes{0}, Le<uint32_t>(5), AsBytes("12345")}));
}

PackManifest SmallManifest() {
  PackManifest m;
  m.file_size = 16384;
  m.skeleton = FixedDigest(4);
  m.chunks = {{8208, 1048, 1000, FixedDigest(5)}, {12304, 148, 100, FixedDigest(6)}};
  m.root = PackRoot(m);
  return m;
}

LayerRecord SmallLayer() {
  LayerRecord l;
  l.unit = 0;
  StoredTensor t;
  t.name = "w", t.dtype = DType::kU8, t.shape = {11, 100}, t.digest = FixedDigest(7), t.pieces = {{0, 0}, {0, 1}};
  l.tensors = {t};
  l.packs = {SmallManifest()};
  l.input_amax = {0x3f800000}, l.weight_amax = {1};
  l.source = FixedDigest(8);
  l.omitted = {1};
  return l;
}

SampleRecord SmallSample() {
  SampleRecord s;
  s.sample = 0, s.first_layer = 0, s.last_layer = 1;
  s.input = Sha256(EncodeTokens(fuzz::SmallTokens()[0]));
  s.numerics = "cpu/test";
  s.amax = {1.5f};
  Cut c;
  c.tokens = 55, c.hidden = 10, c.digest = FixedDigest(2), c.packs = {SmallManifest()};
  s.output = c;
  return s;
}

Incarnation SmallIncarnation() {
  Incarnation i;
  i.node = "n1", i.nonce = NonceOf(3), i.hostname = "host", i.machine_id = "m", i.boot_id = "b", i.binary = "holdfastd 0.1", i.device = "cpu";
  i.endpoint = "tcp://10.0.0.1:7411", i.public_key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
  i.version = "0.1.0", i.numerics = "cpu/test", i.memory_bytes = 1u << 30, i.speed = 9, i.threads = 2, i.pid = 77, i.start_ticks = 12345;
  return i;
}

Assignment SmallAssignment() {
  Assignment a;
  a.number = 1;
  a.stages = {{StageId(0), "n1", ""}, {StageId(1), "", "needs 1 GB more"}};
  a.why = "lost node n3";
  return a;
}

OmitRecord SmallOmission() { return {1, StageId(0), "ended 2 workers"}; }

QueueRecord SmallSubmit() {
  QueueRecord q;
  q.job = "0123456789ab", q.name = "night-1", q.source = "/models/small", q.out = "/models/small-nvfp4";
  q.after = {"ba9876543210"}, q.priority = 1500, q.shard_layers = {1, 1}, q.on = {"n1", ""}, q.reproducible = true, q.notify = "true", q.by = "me@laptop";
  return q;
}

MergeRecord SmallMerge() { return {0, MergeRecord::State::kWritten, "model.safetensors", "out/.staging-x", 99, FixedDigest(4)}; }

VoidRecord SmallVoid() {
  VoidRecord v;
  v.target = "key", v.seq = 1, v.key = RecordKey{RecordClass::kLayer, 0, 0, 0, 0}.Encode(), v.reason = "damaged", v.evidence = "quarantine/1";
  return v;
}

void SaveJson(RecordClass cls, const Json& j, const Bytes& binary = {}) {
  const Bytes head = {static_cast<uint8_t>(cls), static_cast<uint8_t>(binary.size())};
  Save("record_json", std::string("class-") + static_cast<char>(cls), Joined({head, binary, AsBytes(CanonicalJson(j))}));
}

void SaveRecords() {
  SaveJson(RecordClass::kJob, fuzz::SmallJob(NonceOf(1)).ToJson(), EncodeTokens({1, 2, 3}));
  SaveJson(RecordClass::kPlan, fuzz::SmallPlan().ToJson());
  SaveJson(RecordClass::kIncarnation, SmallIncarnation().ToJson());
  SaveJson(RecordClass::kClaim, Claim{3, NonceOf(2), "n", "start", 5, "cpu"}.ToJson());
  SaveJson(RecordClass::kRelease, Release{3, "done"}.ToJson());
  SaveJson(RecordClass::kPhase, PhaseBegin{kPhaseBlame, 2, 4, 8, 16, 1u << 30, 2u << 30, 1, "ended 2 workers"}.ToJson());
  SaveJson(RecordClass::kOmit, SmallOmission().ToJson());
  SaveJson(RecordClass::kAssignment, SmallAssignment().ToJson());
  SaveJson(RecordClass::kQueue, SmallSubmit().ToJson());
  SaveJson(RecordClass::kSource, SourceRead{7, {{"a", FixedDigest(1)}, {"b", FixedDigest(2)}}}.ToJson());
  SaveJson(RecordClass::kLayer, SmallLayer().ToJson());
  SaveJson(RecordClass::kSeal, SealRecord{4, 0, 3, FixedDigest(3), {1, 2}}.ToJson());
  SaveJson(RecordClass::kMerge, SmallMerge().ToJson());
  SaveJson(RecordClass::kDone, DoneRecord{FixedDigest(5), {{"layers", 3}, {"note", "fine"}}}.ToJson());
  SaveJson(RecordClass::kVoid, SmallVoid().ToJson());
  SampleRecord sample = SmallSample();
  sample.sample = 3;
  const std::vector<Record> records = sample.ToRecords(StageId(1));
  SaveJson(RecordClass::kSample, *ControlPayload(records[0]), records[1].payload);
}

void SaveSegments() {
  SegmentTrailer t;
  t.seq = 5, t.epoch = 1, t.job = NonceOf(0x11), t.incarnation = NonceOf(0x22), t.commit = NonceOf(0x33);
  t.stream = StreamId("stage.01"), t.prev = FixedDigest(0x44), t.env_len = 3, t.records = 1;
  t.env_sha256 = Sha256(AsBytes("env"));
  Save("segment", "trailer", Joined({AsBytes("env"), t.Encode()}));
  t.flags = kFlagTombstone;
  Save("segment", "tombstone", t.Encode());
  Save("environment", "three-entries", Joined({Bytes{1, 10, 0, 'a', 'a', 'a', 7}, Bytes{1, 0, 64, 'a', 'a', 'b', 8}, Bytes{2, 0, 0, 'b', 'b', 'b', 'b', 'b', 'b', 9}}));
  Bytes many;
  for (uint8_t i = 0; i < 60; ++i) many = Joined({many, Bytes{1, 0, 2, 'k', i, 0, i}});
  Save("environment", "sixty-entries", many);
}

void SavePacks() {
  SimFileSystem fs;
  const RunLayout layout("/run");
  PackWriter writer(fs, layout, NonceOf(1), "seed");
  HOLDFAST_CHECK(writer.Add(Codec::kZstd, Bytes(3000, 1)).ok() && writer.Add(Codec::kStored, Bytes(40, 2)).ok());
  const auto packs = writer.Finish();
  HOLDFAST_CHECK(packs.ok());
  const auto file = fs.ReadFile(layout.Pack(packs->at(0).root));
  Save("pack", "two-chunks", Joined({Le<uint16_t>(static_cast<uint16_t>(file->size())), *file, AsBytes(CanonicalJson(ManifestToJson(packs->at(0))))}));
  Save("pack", "table-alone", Joined({Le<uint16_t>(0), AsBytes(CanonicalJson(ManifestToJson(SmallManifest())))}));
}

// An item of ledger_input.h.
Bytes Item(uint8_t stream, uint8_t flags, const RecordKey& key, ByteSpan payload) {
  const Bytes head = {stream, flags, static_cast<uint8_t>(key.cls), static_cast<uint8_t>(key.a), static_cast<uint8_t>(key.b), static_cast<uint8_t>(key.part)};
  return Joined({head, Le<uint16_t>(static_cast<uint16_t>(payload.size())), payload});
}
Bytes Said(uint8_t stream, uint8_t flags, const RecordKey& key, const Json& j) { return Item(stream, flags, key, AsBytes(CanonicalJson(j))); }

void SaveFolds() {
  enum : uint8_t { kJob, kStage0, kStage1, kMergeStream, kNode };
  const std::vector<Record> sample = SmallSample().ToRecords(StageId(0));
  const Bytes work = Joined({Bytes{1}, Said(kStage0, 1, {RecordClass::kPhase, 0, 1, 0, 0}, PhaseBegin{"calibrate", 0, 1, 1, 5, 6}.ToJson()),
                             Item(kStage0, 1, sample[0].key, sample[0].payload), Item(kStage0, 0, sample[1].key, sample[1].payload),
                             Said(kStage0, 1, {RecordClass::kLayer, 0, 0, 0, 0}, SmallLayer().ToJson())});
  Save("run_fold", "sample-and-layer", work);
  Save("run_fold", "omission", Joined({work, Said(kJob, 1, {RecordClass::kOmit, 0, 1, 0, 0}, SmallOmission().ToJson())}));
  Save("run_fold", "void", Joined({work, Said(kStage0, 1, {RecordClass::kVoid, 0, 0, 0, 0}, SmallVoid().ToJson())}));
  Save("run_fold", "assignment-and-merge", Joined({Bytes{1}, Said(kJob, 1, {RecordClass::kAssignment, 0, 1, 0, 0}, SmallAssignment().ToJson()),
                                                   Said(kNode, 1, {RecordClass::kIncarnation, 0, 0, 0, 0}, SmallIncarnation().ToJson()),
                                                   Said(kMergeStream, 1, {RecordClass::kMerge, 0, 0, 0, 1}, SmallMerge().ToJson()),
                                                   Said(kMergeStream, 3, {RecordClass::kDone, 0, 0, 0, 0}, DoneRecord{FixedDigest(5), {{"layers", 2}}}.ToJson())}));
  Bytes bare = {0};
  for (const Record& r : fuzz::SmallJobRecords(NonceOf(1))) bare = Joined({bare, Item(kJob, 0, r.key, r.payload)});
  Save("run_fold", "job-from-the-input", bare);

  enum : uint8_t { kQueueStream, kNode1, kNode2 };
  const RecordKey q{RecordClass::kQueue, 0, 0, 0, 0};
  QueueRecord first = SmallSubmit(), cancel, drain;
  first.job = "ba9876543210", first.name = "night-0", first.after = {};
  cancel.op = QueueRecord::Op::kCancel, cancel.job = first.job;
  drain.op = QueueRecord::Op::kDrain, drain.node = "n1";
  Save("queue", "two-jobs", Joined({Said(kQueueStream, 1, q, first.ToJson()), Said(kQueueStream, 1, q, SmallSubmit().ToJson()), Said(kQueueStream, 1, q, cancel.ToJson()),
                                    Said(kQueueStream, 1, q, drain.ToJson()), Said(kNode1, 1, {RecordClass::kIncarnation, 0, 0, 0, 0}, SmallIncarnation().ToJson())}));
}

void SaveSealedTexts() {
  SealedText text;
  Save("sealed_text", "format", RenderSealedText("holdfast run directory", text));
  text.more = {{"uuid", NonceOf(7).Hex()}, {"commit", "link"}};
  Save("sealed_text", "root", RenderSealedText("holdfast root directory", text));
  text.incompat = 1, text.ro_compat = 2, text.more["later"] = "a b  c";
  Save("sealed_text", "newer-root", RenderSealedText("holdfast root directory", text));
}

// ---- daemons ----

Beat SmallBeat() {
  Beat b;
  b.root = NonceOf(1), b.node = "n1", b.incarnation = NonceOf(3), b.count = 9, b.wall_ns = 1700000000000000000, b.hostname = "h\"\\ \xe2\x82\xac";
  b.endpoint = "tcp://10.0.0.1:7411", b.version = "0.1.0", b.numerics = "cpu/test", b.device = "cpu", b.memory_bytes = 1u << 30;
  b.coordinates = {"0123456789ab"}, b.warnings = {"root is not shared"};
  TaskBeat t;
  t.job = "0123456789ab", t.state = "running", t.phase = "calibrate", t.samples_done = 3, t.samples_total = 8, t.last_death = "signal 9";
  b.tasks = {t, t};
  b.tasks[1].stage = kMergeTask;
  return b;
}

void SaveWire() {
  EdgeMessage edge;
  edge.kind = EdgeMessage::Kind::kChunk, edge.job = NonceOf(1), edge.producer = NonceOf(2), edge.boundary = 14, edge.sample = 3, edge.chunk = 1, edge.chunks = 2;
  edge.tokens = 512, edge.total_bytes = 512 * 576 * 2, edge.digest = FixedDigest(1);
  Save("wire", "edge-message", edge.Encode());
  Save("wire", "edge-credit", EdgeCredit{NonceOf(3), 7}.Encode());
  WorkerReport report;
  report.kind = WorkerReport::Kind::kFailed, report.phase = "evict", report.error = "quote \" here";
  Save("wire", "worker-report", report.Encode());
  Save("wire", "beat", SmallBeat().Encode());
  ControlMessage one, answer, hint;
  one.beats = {SmallBeat()};
  answer.kind = ControlMessage::Kind::kBeats, answer.beats = {SmallBeat(), SmallBeat()};
  hint.kind = ControlMessage::Kind::kHint, hint.job = "0123456789ab", hint.stream = "stage.01";
  Save("wire", "control-beat", one.Encode());
  Save("wire", "control-answer", answer.Encode());
  Save("wire", "control-hint", hint.Encode());
  const std::string beat = SmallBeat().Encode();
  Save("status", "beat-and-job", Joined({Le<uint16_t>(static_cast<uint16_t>(beat.size())), AsBytes(beat), AsBytes(CanonicalJson(SmallSubmit().ToJson()))}));
}

void SaveDaemonFiles() {
  Save("worker_args", "worker", CanonicalJson({{"v", 1}, {"run_dir", "/root/jobs/0123456789ab"}, {"stage", 1}, {"attempt", 0}, {"reason", "start"}, {"node", "n1"},
                                                {"supervisor", NonceOf(3).Hex()}, {"device", "cpu"}, {"window", 2}, {"threads", 4}, {"edge_listen", "tcp://10.0.0.2:*"},
                                                {"keys_dir", "/root/keys"}, {"renaming", false}, {"phase_ms", {{"load", 12}}}, {"rss_peak_bytes", 5}}));
  // The pair that ZeroMQ's documentation shows.
  const std::string secret = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs\n", open = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID\n";
  Save("keys", "pair", Joined({Bytes{static_cast<uint8_t>(secret.size())}, AsBytes(secret), AsBytes(open)}));
  Save("keys", "not-a-pair", Joined({Bytes{static_cast<uint8_t>(open.size())}, AsBytes(open), AsBytes(secret)}));
  Save("daemon_config", "all-options", std::string("# a node\nname = \"spark1\"\nlisten = '10.0.0.2:7070'\ndevice = \"cpu\"\nmemory = \"24G\"\nthreads = 20\nsuspect=60\ntakeover = true\nno-notify = true\n"));
  Save("daemon_config", "sections", std::string("[default]\nthreads = [1, 2]\n[sub.command]\nname = \"x\"\nroot = \"/elsewhere\"\n"));
  Save("canary", "passes", std::string("a"));
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  using namespace holdfast;
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_fuzz_seeds DIR\n");
    return 2;
  }
  g_top = argv[1];
  SaveSafetensors();
  SaveConfigs();
  SaveCalibration();
  SaveValues();
  SaveRecords();
  SaveSegments();
  SavePacks();
  SaveFolds();
  SaveSealedTexts();
  SaveWire();
  SaveDaemonFiles();
  return 0;
}
