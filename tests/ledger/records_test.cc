// SPDX-License-Identifier: Apache-2.0
//
// Record codecs: every typed payload round-trips, and every mutation of one is answered with kCorrupt or a value, never a crash.
#include "ledger/records/records.h"

#include <cmath>
#include <functional>
#include <limits>

#include "ledger/records/value.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

PackManifest SmallManifest() {
  PackManifest m;
  m.file_size = 16384;
  m.skeleton = DigestOf(4);
  m.chunks = {{8208, 1048, 1000, DigestOf(5)}, {12304, 148, 100, DigestOf(6)}};
  m.root = PackRoot(m);
  return m;
}

LayerRecord SmallLayer() {
  LayerRecord l;
  l.unit = 3;
  StoredTensor t;
  t.name = "w";
  t.dtype = DType::kU8;
  t.shape = {11, 100};
  t.digest = DigestOf(7);
  t.pieces = {{0, 0}, {0, 1}};
  l.tensors = {t};
  l.packs = {SmallManifest()};
  l.input_amax = {0x3f800000, 0x40000000};
  l.weight_amax = {1, 2};
  l.source = DigestOf(8);
  return l;
}

SampleRecord SampleWithCut() {
  SampleRecord s = SmallSample(5, 1, 3);
  Cut c;
  c.tokens = 55;
  c.hidden = 10;
  c.digest = DigestOf(2);
  c.packs = {SmallManifest()};
  s.output = c;
  return s;
}

Incarnation SmallIncarnation() {
  Incarnation i;
  i.node = "spark1";
  i.nonce = NonceOf(3);
  i.hostname = "host";
  i.machine_id = "machine";
  i.boot_id = "boot";
  i.binary = "holdfast-worker 0.1";
  i.device = "cpu";
  i.endpoint = "tcp://x:1";
  i.pid = 77;
  i.start_ticks = 12345;
  return i;
}

Incarnation DaemonIncarnation() {
  Incarnation i = SmallIncarnation();
  i.public_key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
  i.version = "0.2.0";
  i.numerics = "cpu/bf16/avx2/libtorch-1.13.1";
  i.memory_bytes = 128ull << 30;
  i.speed = 90000;
  i.threads = 20;
  return i;
}

Assignment SmallAssignment() {
  Assignment a;
  a.number = 3;
  a.plan = 1;
  a.stages = {{StageId(0), "spark1", ""}, {StageId(1), "box", "", "cuda:1"}, {StageId(2), "", "needs 1.2 GB more than the largest node has"}};
  a.numerics = "cpu/test";
  a.why = "lost node n3";
  return a;
}

QueueRecord SmallSubmit() {
  QueueRecord q;
  q.job = "0123456789ab";
  q.name = "night-1";
  q.source = "/models/small";
  q.out = "/models/small-nvfp4";
  q.after = {"ba9876543210", "night-0"};
  q.priority = 1500;
  q.shard_layers = {41, 41, 6};
  q.on = {"spark1", "spark2", ""};
  q.reproducible = true;
  q.notify = "mail -s done me";
  q.by = "me@laptop";
  return q;
}

// Encodes, decodes and encodes again: the same canonical bytes.
template <class T>
void ExpectRoundTrip(const T& value) {
  const std::string text = CanonicalJson(value.ToJson());
  const auto json = ParseJson(text, "test");
  HOLDFAST_ASSERT_OK(json);
  const auto back = T::FromJson(*json);
  HOLDFAST_ASSERT_OK(back);
  EXPECT_EQ(CanonicalJson(back->ToJson()), text);
}

// Replaces or removes each member at any depth, one at a time, and hands the result to `decode`: it must answer, not crash.
void Mutate(const Json& root, const std::function<void(const Json&)>& decode) {
  const std::vector<Json> poison = {nullptr, true, -1, 0, UINT64_MAX, 1.5, "", "zz", Json::array(), Json::object(), Json::array({1, 2, 3, 4})};
  const Json flat = root.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    for (Json::json_pointer at(pointer); !at.empty(); at.pop_back()) {
      for (const Json& p : poison) {
        Json bad = root;
        bad[at] = p;
        decode(bad);
      }
      if (root[at.parent_pointer()].is_object()) {
        Json bad = root;
        bad[at.parent_pointer()].erase(at.back());
        decode(bad);
      }
    }
  }
}

template <class T>
void ExpectMutationsAnswered(const T& value) {
  uint64_t refused = 0;
  Mutate(value.ToJson(), [&](const Json& bad) {
    const auto r = T::FromJson(bad);
    if (r.ok()) return;
    ++refused;
    EXPECT_EQ(r.code(), ErrorCode::kCorrupt);
    EXPECT_NE(r.error().message.find("record"), std::string::npos) << r.error().message;
  });
  EXPECT_GT(refused, 0u);
}

template <class T>
void Exercise(const T& value) {
  ExpectRoundTrip(value);
  ExpectMutationsAnswered(value);
}

TEST(Records, EveryControlPayloadRoundTripsAndSurvivesMutation) {
  Exercise(SmallJob(NonceOf(1), 4));
  Exercise(SmallPlan(3, {{StageId(0), 0, 2}, {StageId(1), 2, 3}}));
  JobSpec named = SmallJob(NonceOf(1), 4);
  named.name = "night-1";
  named.config = R"({"num_hidden_layers": 4})";
  Exercise(named);
  Exercise(SmallIncarnation());
  Exercise(DaemonIncarnation());
  Exercise(SmallAssignment());
  Exercise(SmallSubmit());
  Exercise(Claim{3, NonceOf(2), "n", "start", 5, "cpu"});
  Exercise(Release{3, "done"});
  Exercise(PhaseBegin{"load", 2, 4, 8, 40, 1u << 30, 2u << 30, {}, {}});
  Exercise(SourceRead{7, {{"a", DigestOf(1)}, {"b", DigestOf(2)}}});
  Exercise(SmallLayer());
  Exercise(SealRecord{4, 0, 3, DigestOf(3), {}});
  Exercise(SealRecord{4, 0, 3, DigestOf(3), {1, 2}});
  Exercise(OmitRecord{5, StageId(2), "ended 2 workers"});
  const PhaseBegin blame{kPhaseBlame, 0, 1, 1, 0, 0, 0, 5, "not finite at model.layers.3.mlp.down_proj"};
  Exercise(blame);
  LayerRecord fewer = SmallLayer();
  fewer.omitted = {0, 5, 9};
  Exercise(fewer);
  JobSpec skipping = SmallJob(NonceOf(1), 4);
  skipping.skip_samples = 2;
  Exercise(skipping);
  JobSpec other_layout = SmallJob(NonceOf(1), 4);
  other_layout.layout = "compressed-tensors";
  Exercise(other_layout);
  Exercise(MergeRecord{2, MergeRecord::State::kWritten, "model-00001-of-00002.safetensors", "out/.staging-x", 99, DigestOf(4)});
  Exercise(DoneRecord{DigestOf(5), {{"layers", 3}, {"note", "fine"}}});
  VoidRecord v;
  v.target = "key";
  v.key = RecordKey{RecordClass::kSample, 1, 2, 3, 0}.Encode();
  v.reason = "test";
  Exercise(v);
}

TEST(Records, EveryOpOfTheQueueIsSpelledAndReadBack) {
  using Op = QueueRecord::Op;
  const std::vector<std::pair<Op, std::string>> ops = {{Op::kSubmit, "submit"}, {Op::kRefuse, "refuse"}, {Op::kCancel, "cancel"}, {Op::kRetry, "retry"},
                                                       {Op::kFinish, "finish"}, {Op::kDrain, "drain"}, {Op::kUndrain, "undrain"}};
  for (const auto& [op, spelled] : ops) {
    QueueRecord q;
    q.op = op;
    (op == Op::kDrain || op == Op::kUndrain ? q.node : q.job) = op == Op::kDrain || op == Op::kUndrain ? "n1" : "0123456789ab";
    if (op == Op::kFinish) q.outcome = "failed";
    const Json j = q.ToJson();
    EXPECT_EQ(j["op"], spelled);
    const auto back = QueueRecord::FromJson(j);
    HOLDFAST_ASSERT_OK(back);
    EXPECT_EQ(back->op, op);
  }
}

// Ids and names become parts of paths.
TEST(Records, QueueRecordsCannotLeaveTheirDirectory) {
  const auto refused = [](const std::function<void(QueueRecord*)>& change) {
    QueueRecord q = SmallSubmit();
    change(&q);
    return QueueRecord::FromJson(q.ToJson()).code() == ErrorCode::kCorrupt;
  };
  for (const char* id : {"", "../../../etc", "0123456789AB", "0123456789abc", "0123456789a/"}) {
    EXPECT_TRUE(refused([&](QueueRecord* q) { q->job = id; })) << id;
  }
  for (const std::string& name : {std::string(".."), std::string("a/b"), std::string(".hidden"), std::string(65, 'a'), std::string("a\033[2J")}) {
    EXPECT_TRUE(refused([&](QueueRecord* q) { q->name = name; })) << name;
    EXPECT_TRUE(refused([&](QueueRecord* q) { q->on = {name}; })) << name;
    EXPECT_TRUE(refused([&](QueueRecord* q) { q->after = {name}; })) << name;
    EXPECT_TRUE(refused([&](QueueRecord* q) { q->op = QueueRecord::Op::kDrain, q->job = "", q->node = name; })) << name;
  }
  EXPECT_FALSE(refused([](QueueRecord* q) { q->name = std::string(64, 'a'); }));
  EXPECT_TRUE(refused([](QueueRecord* q) { q->op = QueueRecord::Op::kFinish; }));   // with no outcome
  EXPECT_TRUE(refused([](QueueRecord* q) { q->shard_layers = {4, 0}; }));
}

TEST(Records, ListsAndTextsHaveLimits) {
  QueueRecord q = SmallSubmit();
  q.detail = std::string(kTextBytesMax, 'x');
  HOLDFAST_EXPECT_OK(QueueRecord::FromJson(q.ToJson()));
  q.detail += 'x';
  EXPECT_EQ(QueueRecord::FromJson(q.ToJson()).code(), ErrorCode::kCorrupt);
  q = SmallSubmit();
  q.shard_layers.assign(kListMax + 1, 1);
  EXPECT_EQ(QueueRecord::FromJson(q.ToJson()).code(), ErrorCode::kCorrupt);
  Assignment a = SmallAssignment();
  a.stages.resize(kListMax + 1);
  EXPECT_EQ(Assignment::FromJson(a.ToJson()).code(), ErrorCode::kCorrupt);
  Incarnation i = DaemonIncarnation();
  i.public_key.pop_back();
  EXPECT_EQ(Incarnation::FromJson(i.ToJson()).code(), ErrorCode::kCorrupt);
  i = DaemonIncarnation();
  i.endpoint = std::string(kPathBytesMax + 1, 'x');
  EXPECT_EQ(Incarnation::FromJson(i.ToJson()).code(), ErrorCode::kCorrupt);
  JobSpec job = SmallJob(NonceOf(1), 1);
  job.config = std::string(kConfigBytesMax + 1, ' ');
  EXPECT_EQ(JobSpec::FromJson(job.ToJson()).code(), ErrorCode::kCorrupt);
}

// Ledgers of the first format lack what was added since, and what says nothing is not written.
TEST(Records, MembersThatWereAddedLaterMayBeMissing) {
  const Json job = SmallJob(NonceOf(1), 1).ToJson(), life = SmallIncarnation().ToJson();
  for (const char* key : {"name", "config", "skip_samples", "layout"}) EXPECT_FALSE(job.contains(key)) << key;
  for (const char* key : {"public_key", "version", "numerics", "memory_bytes", "speed", "threads"}) EXPECT_FALSE(life.contains(key)) << key;
  HOLDFAST_EXPECT_OK(JobSpec::FromJson(job));
  const auto back = Incarnation::FromJson(life);
  HOLDFAST_ASSERT_OK(back);
  EXPECT_EQ(back->memory_bytes, 0u);
  EXPECT_EQ(back->public_key, "");
  EXPECT_FALSE(SmallLayer().ToJson().contains("omitted"));
  EXPECT_FALSE((SealRecord{4, 0, 3, DigestOf(3), {}}).ToJson().contains("omitted"));
}

// Two lists of the same samples are the same list: only then can they be compared.
TEST(Records, SamplesThatAreLeftOutAscend) {
  for (const std::vector<uint32_t>& bad : {std::vector<uint32_t>{5, 3}, std::vector<uint32_t>{3, 3}}) {
    LayerRecord l = SmallLayer();
    l.omitted = bad;
    EXPECT_EQ(LayerRecord::FromJson(l.ToJson()).code(), ErrorCode::kCorrupt);
    EXPECT_EQ(SealRecord::FromJson(SealRecord{4, 0, 3, DigestOf(3), bad}.ToJson()).code(), ErrorCode::kCorrupt);
  }
}

TEST(Records, SampleRoundTripsWithExactBits) {
  SampleRecord s = SampleWithCut();
  s.amax = {0.0f, 1.5f, std::numeric_limits<float>::infinity(), std::bit_cast<float>(0x7fc12345u)};
  const std::vector<Record> records = s.ToRecords(StageId(6));
  ASSERT_EQ(records.size(), 2u);
  EXPECT_LT(records[0].key, records[1].key);
  const auto back = SampleRecord::FromRecords(records[0], records[1]);
  HOLDFAST_ASSERT_OK(back);
  ASSERT_EQ(back->amax.size(), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(back->amax[i]), std::bit_cast<uint32_t>(s.amax[i]));
  EXPECT_EQ(back->output->packs[0].root, s.output->packs[0].root);
  EXPECT_EQ(back->ToRecords(StageId(6))[0].payload, records[0].payload);

  Record other = records[1];
  other.key.a = 99;
  EXPECT_EQ(SampleRecord::FromRecords(records[0], other).code(), ErrorCode::kCorrupt);
  other = records[1];
  other.payload.pop_back();
  EXPECT_EQ(SampleRecord::FromRecords(records[0], other).code(), ErrorCode::kCorrupt);
}

TEST(Records, SampleMutationsAreAnswered) {
  const std::vector<Record> records = SampleWithCut().ToRecords(StageId(6));
  const auto json = ControlPayload(records[0]);
  HOLDFAST_ASSERT_OK(json);
  Mutate(*json, [&](const Json& bad) {
    Record r = records[0];
    const std::string text = bad.dump();
    r.payload.assign(text.begin(), text.end());
    const auto answer = SampleRecord::FromRecords(r, records[1]);
    EXPECT_TRUE(answer.ok() || answer.code() == ErrorCode::kCorrupt);
  });
}

TEST(Records, ManifestsThatDoNotFitAreRefused) {
  PackManifest m = SmallManifest();
  HOLDFAST_EXPECT_OK(ManifestFromJson(ManifestToJson(m), "m"));
  m.chunks[1].offset = m.chunks[0].offset + 10;  // overlaps
  m.root = PackRoot(m);
  EXPECT_EQ(ManifestFromJson(ManifestToJson(m), "m").code(), ErrorCode::kCorrupt);
  m = SmallManifest();
  m.chunks[1].stored_len = UINT64_MAX - 5;  // leaves the file
  m.root = PackRoot(m);
  EXPECT_EQ(ManifestFromJson(ManifestToJson(m), "m").code(), ErrorCode::kCorrupt);
  m = SmallManifest();
  m.file_size += 1;  // another root
  EXPECT_EQ(ManifestFromJson(ManifestToJson(m), "m").code(), ErrorCode::kCorrupt);
}

TEST(Records, ImpossibleShapesAreRefused) {
  LayerRecord l = SmallLayer();
  l.tensors[0].shape = {1ull << 63, 2, 1100};
  EXPECT_EQ(LayerRecord::FromJson(l.ToJson()).code(), ErrorCode::kCorrupt);
  l = SmallLayer();
  l.tensors[0].pieces.push_back({0, 2});
  EXPECT_EQ(LayerRecord::FromJson(l.ToJson()).code(), ErrorCode::kCorrupt);
}

TEST(Records, KeysSortLikeTheirBytes) {
  std::mt19937_64 random(1);
  const auto any = [&] {
    return RecordKey{static_cast<RecordClass>(random() % 256), static_cast<uint16_t>(random()), static_cast<uint32_t>(random() % 3 * 0x7fffffff),
                     static_cast<uint32_t>(random() % 300), static_cast<uint32_t>(random() % 2)};
  };
  for (int i = 0; i < 10000; ++i) {
    const RecordKey a = any(), b = any();
    EXPECT_EQ(a < b, a.Encode() < b.Encode());
    EXPECT_EQ(*RecordKey::Decode(a.Encode()), a);
  }
  EXPECT_FALSE(RecordKey::Decode(Bytes(14)).ok());
}

TEST(Records, ValuesRoundTripAndEveryFlipIsFound) {
  Record r;
  r.key = {RecordClass::kPlan, 0, 1, 0, 0};
  r.codec = Codec::kZstd;
  r.epoch = 7;
  r.wall_ns = 8;
  r.payload = Bytes(3000, 'x');
  const Bytes value = EncodeRecordValue(r);
  EXPECT_LT(value.size(), 200u);
  const auto back = DecodeRecordValue(r.key, value);
  HOLDFAST_ASSERT_OK(back);
  EXPECT_EQ(back->payload, r.payload);
  EXPECT_EQ(back->epoch, 7u);
  for (size_t i = 0; i < value.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes bad = value;
      bad[i] ^= static_cast<uint8_t>(1 << bit);
      EXPECT_EQ(DecodeRecordValue(r.key, bad).code(), ErrorCode::kCorrupt) << i;
    }
  }
  for (size_t n = 0; n < value.size(); ++n) EXPECT_FALSE(DecodeRecordValue(r.key, ByteSpan(value).first(n)).ok());
}

// The header may claim anything; nothing is allocated on its word.
TEST(Records, BombsAreRefused) {
  Bytes value = EncodeRecordValue({{RecordClass::kClaim, 0, 1, 0, 0}, 1, 1, 1, Codec::kZstd, Bytes(100000, 0)});
  for (const uint64_t claimed : {uint64_t{1} << 62, uint64_t{17} << 20, uint64_t{100001}}) {
    Bytes bad(value.begin(), value.begin() + 16);
    PutLe<uint64_t>(&bad, claimed);
    bad.insert(bad.end(), value.begin() + 24, value.begin() + 44);
    PutLe<uint32_t>(&bad, Crc32c(bad));
    bad.insert(bad.end(), value.begin() + 48, value.end());
    EXPECT_EQ(DecodeRecordValue({RecordClass::kClaim, 0, 1, 0, 0}, bad).code(), ErrorCode::kCorrupt);
  }
}

TEST(Records, FloatsInAControlRecordAreRefused) {
  Record r;
  const std::string text = R"({"manifest":"00","report":{"x":1.5}})";
  r.payload.assign(text.begin(), text.end());
  EXPECT_EQ(ControlPayload(r).code(), ErrorCode::kCorrupt);
}

TEST(Records, TokensRoundTrip) {
  const std::vector<int32_t> ids = {0, 1, 128000, INT32_MAX};
  EXPECT_EQ(*DecodeTokens(EncodeTokens(ids)), ids);
  EXPECT_FALSE(DecodeTokens(Bytes(5)).ok());
  EXPECT_FALSE(DecodeTokens(Bytes(4, 0xff)).ok());
}

TEST(Records, JoinAmaxIsAJoin) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(JoinAmax(1.0f, -2.0f), 2.0f);
  EXPECT_TRUE(std::isnan(JoinAmax(inf, nan)));
  EXPECT_TRUE(std::isnan(JoinAmax(nan, inf)));
  std::mt19937 random(3);
  for (int i = 0; i < 100000; ++i) {
    const float a = std::bit_cast<float>(static_cast<uint32_t>(random())), b = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const float c = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const auto bits = [](float f) { return std::bit_cast<uint32_t>(f); };
    ASSERT_EQ(bits(JoinAmax(a, b)), bits(JoinAmax(b, a)));
    ASSERT_EQ(bits(JoinAmax(JoinAmax(a, b), c)), bits(JoinAmax(a, JoinAmax(b, c))));
    ASSERT_EQ(bits(JoinAmax(JoinAmax(a, b), b)), bits(JoinAmax(a, b)));
  }
}

}  // namespace
}  // namespace holdfast
