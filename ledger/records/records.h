// SPDX-License-Identifier: Apache-2.0
//
// What the ledger says: record keys, and the typed payloads of every class. Format page: docs/ledger-format.md.
// Control payloads are canonical JSON (sorted keys, integers and hex strings, no floats); amax vectors and token ids are
// packed little-endian arrays. Every decoder takes untrusted bytes and answers kCorrupt, naming record class and field.
//
// Words: a *unit* is what is evicted as one: decoder layers 0..L-1, then unit L ("embed": token embedding) and unit L+1
// ("head": final norm and lm_head). A *site* is one quantized linear, whose input amax is observed. Sites that read the very
// same tensor form a *set* and share weight_scale_2 and input_scale.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ledger/base/checksum.h"
#include "ledger/base/coding.h"
#include "ledger/base/ids.h"
#include "ledger/base/json.h"
#include "ledger/base/result.h"
#include "ledger/codec/codec.h"
#include "ledger/records/dtype.h"

namespace holdfast {

enum class RecordClass : uint8_t {
  kJob = 'J', kPlan = 'P', kIncarnation = 'N', kClaim = 'C', kRelease = 'R', kRenew = 'L', kPhase = 'B', kSource = 'W',
  kSample = 'S', kLayer = 'E', kExport = 'X', kSeal = 'Z', kMerge = 'M', kDone = 'D', kVoid = 'V', kCheckpoint = 'K',
  kQueue = 'Q', kAssignment = 'A', kOmit = 'O',
};

// 15 bytes, big endian, so that LMDB's memcmp order is the order of the fields.
struct RecordKey {
  RecordClass cls = RecordClass::kJob;
  uint16_t stage = 0;
  uint32_t a = 0, b = 0, part = 0;
  friend constexpr auto operator<=>(const RecordKey&, const RecordKey&) = default;
  Bytes Encode() const;
  static Result<RecordKey> Decode(ByteSpan bytes);
};

// One record with its decoded (raw) payload.
struct Record {
  RecordKey key;
  uint16_t schema = 1;
  uint64_t epoch = 0;
  uint64_t wall_ns = 0;
  Codec codec = Codec::kStored;  // how the payload is encoded at rest
  Bytes payload;
};

// Value bytes at rest: 48-byte little-endian header {magic u16, hdr_ver u8, class u8, codec u8, flags u8, schema u16, epoch u64,
// raw_len u64, enc_len u64, wall_ns u64, crc32c(payload) u32, crc32c(header) u32} + encoded payload.
inline constexpr size_t kRecordKeyBytes = 15;
inline constexpr size_t kRecordHeaderBytes = 48;
Bytes EncodeRecordValue(const Record& r);
Result<Record> DecodeRecordValue(const RecordKey& key, ByteSpan value);

// ---- packs and tensors as records refer to them ----

struct ChunkRef {           // one value of a pack
  uint64_t offset = 0;      // of the value (48-byte header + encoded payload) in the pack file
  uint64_t stored_len = 0;  // of the value
  uint64_t raw_len = 0;     // of the decoded payload
  Digest digest;            // SHA-256 of the value
};

// Longest that a decoder lets pass. Names become parts of paths; everything else is for people.
inline constexpr size_t kNameBytesMax = 64;
inline constexpr size_t kPathBytesMax = 4096;
inline constexpr size_t kTextBytesMax = 64u << 10;
inline constexpr size_t kConfigBytesMax = 4u << 20;
inline constexpr size_t kListMax = 4096;         // stages, nodes, jobs in one list
// [A-Za-z0-9][A-Za-z0-9_.-]{0,63}: names of nodes and jobs; safe as part of a path.
bool IsPlainName(const std::string& name);
bool IsJobId(const std::string& id);             // 12 lower-case hex digits

struct PackManifest {
  Digest root;              // = the pack's name; covers size, skeleton and every chunk (see pack.h)
  uint64_t file_size = 0;
  Digest skeleton;          // SHA-256 of all bytes of the file outside the chunks' values
  std::vector<ChunkRef> chunks;
};

Digest PackRoot(const PackManifest& m);  // recomputed from the other fields, see pack.h
Json ManifestToJson(const PackManifest& m);
// Refuses a manifest whose fields do not give its root, or whose chunks overlap or leave the file.
Result<PackManifest> ManifestFromJson(const Json& j, const std::string& what);

struct StoredTensor {       // a tensor inside the packs of one record
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<uint64_t> shape;  // empty: 0-dim
  Digest digest;                // SHA-256 of its raw bytes
  struct Piece { uint32_t pack = 0, chunk = 0; };
  std::vector<Piece> pieces;    // in byte order; their raw_len add up to the tensor's bytes
  uint64_t bytes() const;
};

// ---- job, plan ----

struct SourceFile {          // a file of the source model, pinned when the job began
  std::string name;          // relative to the model directory
  uint64_t size = 0;
  uint64_t mtime_ns = 0;     // a hint where to look first, no proof
  Digest sha256;             // whole file; zero when only the header was read (huge files)
  Digest header_sha256;      // safetensors: of the 8-byte length and the JSON header; zero for other files
};

// JobSpec::numerics of a job that any device may work on; its records say which did.
inline constexpr char kAnyNumerics[] = "any";

struct JobSpec {             // J, part 0; immutable. Everything that decides the result.
  Nonce uuid;
  std::string name;          // of a job of a root, as people call it; "" = none
  std::string source;        // absolute path of the model directory
  std::string out;           // absolute path of the output directory
  std::string calib;         // absolute path of the calibration file, for people
  std::string recipe;        // "nvfp4", "nvfp4-mlp-only", "nvfp4-w4a16"
  std::string architecture;  // "LlamaForCausalLM"
  std::string numerics;      // numerics class, e.g. "cpu/bf16/avx512_bf16/libtorch-1.13.1"
  uint32_t samples = 0;      // number of calibration sequences pinned below
  uint32_t samples_requested = 0;  // as asked for with --samples; 0: not asked, up to 512
  uint32_t skip_samples = 0; // at most so many of them may be left out (OmitRecord); 0: a sample that cannot be computed fails the job
  uint32_t seq_len = 0;      // maximum tokens of one
  uint64_t shard_bytes = 0;  // maximum bytes of an output file
  std::string layout;        // of the output, as --layout names it; "" = modelopt
  std::string config;        // text of the source's config.json as pinned: a node plans memory without reading the source; "" = older writer
  Digest calib_sha256;       // of the calibration file's bytes
  Digest tokens_sha256;      // over all token ids (u32 LE) of all samples, each preceded by its length (u32 LE)
  std::vector<SourceFile> weights;   // safetensors files
  std::vector<SourceFile> sidecars;  // config.json, tokenizer, templates, licence: copied or rewritten into the output
  Json ToJson() const;
  static Result<JobSpec> FromJson(const Json& j);
};
// J, part 1, a = sample: token ids as u32 LE. (pinned: no node ever tokenizes again)
Bytes EncodeTokens(const std::vector<int32_t>& ids);
Result<std::vector<int32_t>> DecodeTokens(ByteSpan payload);

struct TensorPlan {          // one tensor of the source checkpoint
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<uint64_t> shape;
  uint32_t file = 0;         // index into JobSpec::weights
  uint64_t offset = 0;       // of its bytes in that file
  uint64_t bytes = 0;
};

struct SitePlan {            // one quantized linear
  std::string module;        // "model.layers.0.self_attn.q_proj"
  uint32_t set = 0;          // sites of one unit with equal `set` read the same tensor
  uint64_t rows = 0, cols = 0;  // [out, in]
};

struct UnitPlan {            // a decoder layer, or one of the two outer units
  uint32_t id = 0;
  std::string label;         // "layer 3", "embed", "head"
  std::vector<TensorPlan> tensors;  // every source tensor of the unit, in module order
  std::vector<SitePlan> sites;      // in order of the forward pass; empty for outer units
};

struct StagePlan {
  StageId stage;             // number of its stream, stage.<nn>
  uint32_t first_layer = 0, last_layer = 0;  // [first, last)
};

struct Plan {                // P, a = plan number. A later plan may cut the model differently; results do not change.
  uint32_t number = 0;
  uint32_t layers = 0;       // decoder layers
  uint64_t hidden_size = 0;
  bool input_scales = true;  // false for weight-only recipes
  std::vector<UnitPlan> units;      // layers + 2 of them, index = id
  std::vector<StagePlan> stages;    // contiguous, covering [0, layers); the first owns "embed", the last "head"
  std::vector<std::string> ignore;  // exclude_modules of the output, sorted
  // Sites of layers [first, last) in order; the amax vector of a sample record follows it.
  std::vector<const SitePlan*> SitesOf(uint32_t first_layer, uint32_t last_layer) const;
  Json ToJson() const;
  static Result<Plan> FromJson(const Json& j);
};

// ---- life of streams ----

struct Incarnation {         // N: one life of one process that may own streams
  std::string node;          // name of the node stream
  Nonce nonce;
  std::string hostname, machine_id, boot_id, binary, device;
  std::string endpoint;      // daemon: its control socket; worker: where it takes cuts ("tcp://10.0.0.2:41234", "ipc://@..."); "" = none
  std::string public_key;    // CURVE public key of that socket, Z85 (40 characters); "" = plain
  std::string version, numerics;      // of the program ("0.2.0") and of its device
  uint64_t memory_bytes = 0, speed = 0, threads = 0;  // daemon: what it may plan with; MFLOP/s of a bf16 matmul as measured at start
  uint64_t pid = 0, start_ticks = 0;  // field 22 of /proc/<pid>/stat: tells a reused pid apart
  Json ToJson() const;
  static Result<Incarnation> FromJson(const Json& j);
};

struct Claim {               // C, a = epoch
  uint64_t epoch = 0;
  Nonce incarnation;
  std::string node;
  std::string reason;        // "start", "resume", "out_of_memory", "signal 9", "takeover", ...
  uint64_t pid = 0;
  std::string numerics;
  Json ToJson() const;
  static Result<Claim> FromJson(const Json& j);
};

inline constexpr const char* kReleasePoison = "poison";   // a sample ended worker after worker

struct Release {             // R, a = epoch
  uint64_t epoch = 0;
  std::string reason;        // "done", "drain", kReleasePoison, ...
  Json ToJson() const;
  static Result<Release> FromJson(const Json& j);
};

inline constexpr const char* kPhaseSample = "sample";   // this one is computed alone, as it may have ended a worker
inline constexpr const char* kPhaseBlame = "blame";     // the stage can do nothing without this one: it waits until the job leaves it out

struct PhaseBegin {          // B, a = phase, b = attempt
  std::string phase;         // "load", "calibrate", "evict", "merge", kPhaseSample, kPhaseBlame
  uint32_t attempt = 0;
  uint32_t window = 0, threads = 0;
  uint32_t layers = 0;       // resident at once; 0: not said
  uint64_t planned_bytes = 0, available_bytes = 0;
  std::optional<uint32_t> sample;   // with kPhaseSample and kPhaseBlame
  std::string why;           // with kPhaseBlame: "ended 2 workers", "not finite at model.layers.3.mlp.down_proj"
  Json ToJson() const;
  static Result<PhaseBegin> FromJson(const Json& j);
};

struct Assignment {          // A, a = number, in the job stream: which node is to work on which stage. The latest counts.
  struct Entry {
    StageId stage;
    std::string node;        // "": waits, see `note`
    std::string note;        // why it lies there or waits: "lost node n3", "needs 1.2 GB more than the largest node has"
    std::string device = {}; // of the node, where it has several: "cuda:1"; "" = the only one
  };
  uint32_t number = 0;
  uint32_t plan = 0;         // number of the plan that it speaks of
  std::vector<Entry> stages; // every stage of that plan that is not sealed
  std::string merge_node;    // "" until every stage is sealed
  std::string numerics;      // --reproducible: the class that all must have; else ""
  std::string why;           // "start", "lost node n3", "n3 came back", "drain n1", ...
  Json ToJson() const;
  static Result<Assignment> FromJson(const Json& j);
};

struct OmitRecord {          // O, a = sample, in the job stream: this sample counts nowhere, whatever was or will be computed of it
  uint32_t sample = 0;
  StageId stage;             // that could not do it
  std::string why;           // as in the blame
  Json ToJson() const;
  static Result<OmitRecord> FromJson(const Json& j);
};

// ---- the queue of a root (docs/ledger-format.md, "Roots") ----

struct QueueRecord {         // Q, one per slot of the root's "queue" stream
  enum class Op : uint8_t { kSubmit, kRefuse, kCancel, kRetry, kFinish, kDrain, kUndrain };
  Op op = Op::kSubmit;
  std::string job;           // 12 hex digits: the job's directory is jobs/<job>. Empty for drain and undrain
  std::string name;          // submit, refuse: unique among the jobs of a root
  std::string node;          // drain, undrain
  std::string source, out;   // submit, refuse: for status
  std::vector<std::string> after;       // submit: jobs that must be done before
  uint32_t priority = 1000;             // submit: 1000 is neutral, higher goes first
  std::vector<uint32_t> shard_layers;   // submit: as asked; empty: the coordinator cuts
  std::vector<std::string> on;          // submit: the node of each stage; empty: any
  bool reproducible = false;            // submit: one numerics class for all
  std::string notify;        // submit: command to run at the end; "" = none
  std::string outcome;       // finish: "done", "failed"
  std::string detail;        // refuse, finish: what happened, to what, and the next command; cancel: ""
  std::string by;            // "user@host", for people
  Json ToJson() const;
  static Result<QueueRecord> FromJson(const Json& j);
};

struct SourceRead {          // W, a = unit: digests of the source tensors as a worker read them
  uint32_t unit = 0;
  std::vector<std::pair<std::string, Digest>> tensors;
  Json ToJson() const;
  static Result<SourceRead> FromJson(const Json& j);
};

// ---- results ----

struct Cut {                 // H, inside S: the hidden states that leave a stage for one sample, [tokens, hidden] bf16
  uint64_t tokens = 0, hidden = 0;
  Digest digest;             // SHA-256 of the raw bytes
  std::vector<PackManifest> packs;  // chunks in byte order; empty: not kept (behind the last layer, and between groups of a streamed stage that kept it in memory)
};

struct SampleRecord {        // S, stage = stream, a = sample, b = first layer; part 0 = JSON, part 1 = amax as f32 LE bit patterns
  uint32_t sample = 0;
  uint32_t first_layer = 0, last_layer = 0;
  Digest input;              // digest of the cut that entered; for layer 0: SHA-256 of the token payload (EncodeTokens)
  std::optional<Cut> output;
  std::string numerics;
  std::vector<float> amax;   // absolute, one per site of the range, >= 0 (or NaN: then the sample is left out, or the job is lost)
  std::vector<Record> ToRecords(StageId stage) const;
  static Result<SampleRecord> FromRecords(const Record& control, const Record& amax);
};

struct LayerRecord {         // E, stage = stream, a = unit
  uint32_t unit = 0;
  std::vector<StoredTensor> tensors;    // output tensors, in output module order
  std::vector<PackManifest> packs;
  std::vector<uint32_t> input_amax;     // f32 bits per site, as reduced over all samples; empty for weight-only recipes
  std::vector<uint32_t> weight_amax;    // f32 bits per site, before sharing inside sets
  Digest source;                        // SHA-256 over the digests of the unit's source tensors, in plan order
  std::vector<uint32_t> omitted;        // samples that input_amax does without, ascending; empty where there is no input_amax
  Json ToJson() const;
  static Result<LayerRecord> FromJson(const Json& j);
};

struct SealRecord {          // Z
  uint32_t samples = 0;
  uint32_t first_layer = 0, last_layer = 0;
  Digest root;               // SHA-256 over the slots' record digests, see docs/ledger-format.md
  std::vector<uint32_t> omitted;  // of `samples`, ascending
  Json ToJson() const;
  static Result<SealRecord> FromJson(const Json& j);
};

struct MergeRecord {         // M, a = file number (0-based), part = state; the whole directory: a = 0xffffffff
  enum class State : uint8_t { kBegun = 0, kWritten = 1, kPublished = 2 };
  uint32_t file = 0;
  State state = State::kBegun;
  std::string name;          // file name in the output; for kPublished the output directory
  std::string staging;       // directory in which it lies while not published
  uint64_t size = 0;
  Digest sha256;
  Json ToJson() const;
  static Result<MergeRecord> FromJson(const Json& j);
};
inline constexpr uint32_t kWholeOutput = 0xffffffffu;

struct DoneRecord {          // D
  Digest manifest;           // SHA-256 of SHA256SUMS
  Json report;               // what `jobctl status` prints of a finished job (integers and strings only)
  Json ToJson() const;
  static Result<DoneRecord> FromJson(const Json& j);
};

struct VoidRecord {          // V
  std::string target;        // "slot" or "key"
  uint32_t seq = 0;
  Bytes key;                 // encoded RecordKey when target == "key"
  std::string reason, evidence;
  Json ToJson() const;
  static Result<VoidRecord> FromJson(const Json& j);
};

// Wraps a control payload: class, key fields and canonical JSON.
Record MakeControl(const RecordKey& key, const Json& payload);
Result<Json> ControlPayload(const Record& r);

// max over amax values as a join: sign cleared, compared as uint32, so that +Inf < NaN and NaN is the top.
float JoinAmax(float a, float b);

}  // namespace holdfast
