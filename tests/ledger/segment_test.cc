// SPDX-License-Identifier: Apache-2.0
//
// Segments: determinism, every flip and every truncation detected, golden files, and that LMDB's own tools open them.
#include "ledger/segment/segment.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

std::vector<Record> SomeRecords(Codec codec) {
  std::vector<Record> records = SmallSample(3, 0, 2).ToRecords(StageId(1));
  records.push_back(MakeControl({RecordClass::kClaim, 1, 1, 0, 0}, Claim{1, NonceOf(2), "node", "start", 4, "cpu"}.ToJson()));
  Record big;  // larger than a page: an overflow value
  big.key = {RecordClass::kLayer, 1, 7, 0, 0};
  big.payload = Bf16Weights(3000, 1);
  records.push_back(big);
  for (Record& r : records) r.codec = codec, r.epoch = 1, r.wall_ns = 1700000000000000000ull;
  return records;
}

SegmentTrailer FixedTrailer() {
  SegmentTrailer t;
  t.seq = 5;
  t.epoch = 1;
  t.job = NonceOf(0x11);
  t.incarnation = NonceOf(0x22);
  t.commit = NonceOf(0x33);
  t.stream = StreamId("stage.01");
  t.prev = DigestOf(0x44);
  return t;
}

Bytes FileOf(const Segment& s) {
  Bytes file;
  for (const ByteSpan part : s.parts()) file.insert(file.end(), part.begin(), part.end());
  return file;
}

Bytes SomeFile(Codec codec = Codec::kStored) { return FileOf(*BuildSegment(FixedTrailer(), SomeRecords(codec))); }

TEST(Segment, RoundTrips) {
  for (const Codec codec : {Codec::kStored, Codec::kZstd, Codec::kBf16Planes}) {
    const Bytes file = SomeFile(codec);
    const auto trailer = CheckSegment(file);
    HOLDFAST_ASSERT_OK(trailer);
    EXPECT_EQ(trailer->seq, 5u);
    EXPECT_EQ(trailer->records, 4u);
    EXPECT_EQ(trailer->commit, NonceOf(0x33));
    const auto records = DecodeEnv(ByteSpan(file).first(trailer->env_len), trailer->records);
    HOLDFAST_ASSERT_OK(records);
    std::vector<Record> want = SomeRecords(codec);
    std::sort(want.begin(), want.end(), [](const Record& a, const Record& b) { return a.key < b.key; });
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ((*records)[i].key, want[i].key);
      EXPECT_EQ((*records)[i].payload, want[i].payload);
    }
  }
}

TEST(Segment, EqualInputGivesEqualBytes) {
  std::vector<Record> shuffled = SomeRecords(Codec::kZstd);
  std::swap(shuffled[0], shuffled[3]);
  EXPECT_EQ(FileOf(*BuildSegment(FixedTrailer(), shuffled)), SomeFile(Codec::kZstd));
}

TEST(Segment, EveryByteFlipIsDetected) {
  Bytes file = SomeFile();
  for (size_t i = 0; i < file.size(); ++i) {
    file[i] ^= static_cast<uint8_t>(1u << i % 8);
    ASSERT_FALSE(CheckSegment(file).ok()) << "byte " << i;
    file[i] ^= static_cast<uint8_t>(1u << i % 8);
  }
  HOLDFAST_EXPECT_OK(CheckSegment(file));
}

TEST(Segment, TruncationAtEveryLengthIsDetected) {
  const Bytes file = SomeFile();
  for (size_t n = 0; n < file.size(); ++n) ASSERT_EQ(CheckSegment(ByteSpan(file).first(n)).code(), ErrorCode::kCorrupt) << n;
  Bytes longer = file;
  longer.push_back(0);
  EXPECT_FALSE(CheckSegment(longer).ok());
}

TEST(Segment, DuplicateKeysAndOversizedRecordsAreRefused) {
  std::vector<Record> records = SomeRecords(Codec::kStored);
  records.push_back(records[0]);
  EXPECT_EQ(BuildSegment(FixedTrailer(), records).code(), ErrorCode::kInvalidArgument);
  Record huge;
  huge.key = {RecordClass::kClaim, 0, 1, 0, 0};
  huge.payload.resize((16u << 20) + 1);
  EXPECT_EQ(BuildSegment(FixedTrailer(), {huge}).code(), ErrorCode::kInvalidArgument);
}

// Damage that a digest would have caught, in the places that LMDB trusts blindly: meta pages.
TEST(Segment, MetaPagesOutOfBoundsAreRefusedBeforeLmdbSeesThem) {
  const Bytes file = SomeFile();
  const ByteSpan env = ByteSpan(file).first(file.size() - kTrailerBytes);
  HOLDFAST_EXPECT_OK(DecodeEnv(env, 4));
  EXPECT_EQ(DecodeEnv(env, 3).code(), ErrorCode::kCorrupt);
  EXPECT_EQ(DecodeEnv(env, 5).code(), ErrorCode::kCorrupt);
  for (size_t n = 0; n < env.size(); n += 4096) EXPECT_EQ(DecodeEnv(env.first(n), 4).code(), ErrorCode::kCorrupt);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const size_t at : {size_t{16}, size_t{20}, size_t{40}, page + 16, page + 136}) {  // magic, version, page size; second meta: magic, last page
    Bytes bad(env.begin(), env.end());
    bad[at] ^= 0x40;
    EXPECT_EQ(DecodeEnv(bad, 4).code(), ErrorCode::kCorrupt) << at;
  }
}

TEST(Segment, LargeRecordsFit) {
  Record r;
  r.key = {RecordClass::kPlan, 0, 0, 0, 0};
  r.payload = RandomBytes(40u << 20, 1);
  const auto s = BuildSegment(FixedTrailer(), {r});
  HOLDFAST_ASSERT_OK(s);
  const auto back = DecodeEnv(s->env.bytes(), 1);
  HOLDFAST_ASSERT_OK(back);
  EXPECT_EQ((*back)[0].payload, r.payload);
}

// Values without bytes, of keys of every length: one may end where its page ends. Found by environment_fuzz.
TEST(Segment, EmptyValuesHaveAPlace) {
  for (size_t length = 1; length <= 32; ++length) {
    auto builder = EnvBuilder::Create(EnvMapBytes(64, 1));
    HOLDFAST_ASSERT_OK(builder);
    HOLDFAST_ASSERT_OK(builder->Append(Bytes(length, 1), {}));
    const auto image = std::move(*builder).Seal(/*want_places=*/true);
    HOLDFAST_ASSERT_OK(image);
    ASSERT_EQ(image->values().size(), 1u);
    EXPECT_EQ(image->values()[0].length, 0u);
  }
}

TEST(Segment, ManySmallRecordsFit) {
  std::vector<Record> records;
  for (uint32_t i = 0; i < 5000; ++i) {
    Record r;
    r.key = {RecordClass::kJob, 0, i, 0, 1};
    r.payload = Bytes(i % 500, static_cast<uint8_t>(i));
    records.push_back(r);
  }
  const auto s = BuildSegment(FixedTrailer(), records);
  HOLDFAST_ASSERT_OK(s);
  HOLDFAST_EXPECT_OK(DecodeEnv(s->env.bytes(), 5000));
}

std::string GoldenPath(const std::string& name) { return std::string(HOLDFAST_SOURCE_DIR) + "/tests/golden/ledger/" + name; }

Bytes Golden(const std::string& name, const Bytes& now) {
  if (::getenv("HOLDFAST_UPDATE_GOLDEN") != nullptr) {
    std::ofstream(GoldenPath(name), std::ios::binary).write(reinterpret_cast<const char*>(now.data()), static_cast<std::streamsize>(now.size()));
  }
  PosixFileSystem fs;
  return fs.ReadFile(GoldenPath(name)).value();
}

// Written by version 1 of the format. If this fails, the format has changed: a new format number, docs and golden files together.
TEST(Segment, GoldenFileIsReadAndWrittenTheSame) {
  if (sysconf(_SC_PAGESIZE) != 4096) GTEST_SKIP() << "the golden file has 4 KiB pages";
  EXPECT_EQ(SomeFile(), Golden("segment-v1.seg", SomeFile()));
}

TEST(Segment, GoldenCompressedFileIsRead) {
  const Bytes golden = Golden("segment-v1-zstd.seg", SomeFile(Codec::kBf16Planes));
  const auto trailer = CheckSegment(golden);
  HOLDFAST_ASSERT_OK(trailer);
  const auto records = DecodeEnv(ByteSpan(golden).first(trailer->env_len), trailer->records);
  HOLDFAST_ASSERT_OK(records);
  EXPECT_EQ((*records)[1].payload, Bf16Weights(3000, 1));
}

// What a cluster adds, as its first version wrote it. A later one reads it and, of records that say the same, writes the same bytes.
std::vector<Record> ClusterRecords() {
  Incarnation daemon;
  daemon.node = "spark1";
  daemon.nonce = NonceOf(0x22);
  daemon.hostname = "spark1.lan";
  daemon.endpoint = "tcp://10.0.0.1:7411";
  daemon.public_key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
  daemon.version = "0.1.0";
  daemon.numerics = "cuda/bf16/sm_121/libtorch-2.8.0";
  daemon.memory_bytes = 120ull << 30;
  daemon.speed = 90000;
  daemon.threads = 20;
  QueueRecord submit;
  submit.job = "0123456789ab";
  submit.name = "night-1";
  submit.source = "/models/large";
  submit.out = "/models/large-nvfp4";
  submit.after = {"ba9876543210"};
  submit.shard_layers = {41, 41, 6};
  submit.on = {"spark1", "spark2", "box"};
  submit.by = "me@laptop";
  Assignment assignment;
  assignment.number = 1;
  assignment.stages = {{StageId(0), "spark1", ""}, {StageId(2), "", "needs 1.2 GB more than the largest node has"}};
  assignment.why = "lost node box";
  std::vector<Record> records = {
      MakeControl({RecordClass::kClaim, 0, 1, 0, 0}, Claim{1, NonceOf(0x22), "spark1", "submit", 4, "cpu"}.ToJson()),
      MakeControl({RecordClass::kIncarnation, 0, 0, 0, 0}, daemon.ToJson()), MakeControl({RecordClass::kQueue, 0, 0, 0, 0}, submit.ToJson()),
      MakeControl({RecordClass::kAssignment, 0, 1, 0, 0}, assignment.ToJson())};
  for (Record& r : records) r.codec = Codec::kStored, r.epoch = 1, r.wall_ns = 1700000000000000000ull;
  return records;
}

TEST(Segment, GoldenClusterRecordsAreReadAndWrittenTheSame) {
  if (sysconf(_SC_PAGESIZE) != 4096) GTEST_SKIP() << "the golden file has 4 KiB pages";
  SegmentTrailer trailer = FixedTrailer();
  trailer.stream = StreamId("queue");
  const Bytes now = FileOf(*BuildSegment(trailer, ClusterRecords()));
  const Bytes golden = Golden("segment-v1-cluster.seg", now);
  EXPECT_EQ(now, golden);
  const auto records = DecodeEnv(ByteSpan(golden).first(golden.size() - kTrailerBytes), 4);
  HOLDFAST_ASSERT_OK(records);
  const auto reread = [](const Record& r, auto from_json) {
    const auto json = ControlPayload(r);
    HOLDFAST_ASSERT_OK(json);
    const auto value = from_json(*json);
    HOLDFAST_ASSERT_OK(value);
    EXPECT_EQ(value->ToJson(), *json);
  };
  reread((*records)[0], Assignment::FromJson);
  reread((*records)[1], Claim::FromJson);
  reread((*records)[2], Incarnation::FromJson);
  reread((*records)[3], QueueRecord::FromJson);
}

int RunTool(const std::string& command, std::string* output) {
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  char buffer[4096];
  size_t n;
  while ((n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0) output->append(buffer, n);
  return ::pclose(pipe);
}

TEST(Segment, LmdbToolsOpenIt) {
  const TempDir dir;
  const Bytes file = SomeFile(Codec::kZstd);
  const std::string path = dir.path() + "/00000005.seg";
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
  std::string out;
  EXPECT_EQ(RunTool("mdb_stat -n " + path, &out), 0) << out;
  EXPECT_NE(out.find("Entries: 4"), std::string::npos) << out;
  out.clear();
  EXPECT_EQ(RunTool("mdb_dump -n " + path, &out), 0) << out;
  EXPECT_NE(out.find(HexEncode(RecordKey{RecordClass::kClaim, 1, 1, 0, 0}.Encode())), std::string::npos) << out;
}

}  // namespace
}  // namespace holdfast
