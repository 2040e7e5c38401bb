// SPDX-License-Identifier: Apache-2.0
//
// The fold of a run directory: first valid wins, VOID re-opens, order and repetition change nothing, tombstones close gaps.
#include "ledger/fold/run_state.h"

#include <algorithm>
#include <cmath>

#include "ledger/fold/seal.h"
#include "ledger/log/tombstone.h"
#include "ledger/segment/segment.h"
#include "tests/ledger/run_testing.h"

namespace holdfast {
namespace {

std::vector<Record> VoidSlot(StageId stage, uint32_t seq) {
  VoidRecord v;
  v.target = "slot";
  v.seq = seq;
  v.reason = "test";
  return {MakeControl({RecordClass::kVoid, stage.value, seq, 0, 0}, v.ToJson())};
}

std::vector<Record> VoidKey(const RecordKey& key) {
  VoidRecord v;
  v.target = "key";
  v.key = key.Encode();
  v.reason = "test";
  return {MakeControl({RecordClass::kVoid, key.stage, 0xffff, 0, 0}, v.ToJson())};
}

std::vector<Record> LayerSlot(StageId stage, uint32_t unit) {
  LayerRecord l;
  l.unit = unit;
  l.source = DigestOf(static_cast<uint8_t>(unit));
  return {MakeControl({RecordClass::kLayer, stage.value, unit, 0, 0}, l.ToJson())};
}

TEST(Fold, EmptyDirectoryIsNotFound) {
  SimFileSystem fs;
  RunState state(fs, RunLayout("/nothing"));
  EXPECT_EQ(state.Refresh().code(), ErrorCode::kNotFound);
  HOLDFAST_ASSERT_OK(EnsureFormat(fs, RunLayout("/nothing"), NonceOf(1)));
  EXPECT_EQ(state.Refresh().code(), ErrorCode::kNotFound);
  EXPECT_EQ(state.ReaderOf("job"), nullptr);
}

TEST(Fold, JobPlanAndTokens) {
  TestRun run;
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.job().samples, kSamples);
  EXPECT_EQ(state.plan().layers, 3u);
  ASSERT_EQ(state.tokens().size(), kSamples);
  EXPECT_EQ(state.tokens()[3], (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(state.job_stream().epoch, 1u);
  EXPECT_EQ(state.merge_stream().next_seq, 0u);
}

TEST(Fold, UnknownNamesAreIgnored) {
  TestRun run;
  HOLDFAST_ASSERT_OK(run.fs.MakeDirs("/run/log/stage.1"));
  HOLDFAST_ASSERT_OK(run.fs.MakeDirs("/run/log/lost+found"));
  HOLDFAST_ASSERT_OK(run.fs.Create("/run/log/job/.nfs0001", 0644));
  HOLDFAST_ASSERT_OK(run.fs.Create("/run/log/job/00000000.seg-lock", 0644));
  RunState state(run.fs, run.layout);
  HOLDFAST_EXPECT_OK(state.Refresh());
  EXPECT_TRUE(state.stages().empty());
}

TEST(Fold, NewerFormatIsRefusedAndDamageIsNamed) {
  TestRun run;
  Bytes format = *run.fs.ReadFile("/run/FORMAT");
  run.fs.Corrupt("/run/FORMAT", 30, 1);
  RunState state(run.fs, run.layout);
  EXPECT_EQ(state.Refresh().code(), ErrorCode::kCorrupt);
  std::string text = "holdfast run directory\nformat 2\ncompat 00000000\nro_compat 00000000\nincompat 00000000\n";
  char crc[32];
  std::snprintf(crc, sizeof crc, "crc32c %08x\n", Crc32c(AsBytes(text)));
  text += crc;
  auto file = run.fs.Create("/run/FORMAT", 0644);
  HOLDFAST_ASSERT_OK((*file)->Append(AsBytes(text)));
  EXPECT_EQ(state.Refresh().code(), ErrorCode::kUnsupported);
}

// Samples in any order, repeated, by several epochs: the same amax.
TEST(Fold, AmaxDoesNotDependOnOrderOrRepetition) {
  std::vector<float> want(2, 0.0f);
  for (uint32_t s = 0; s < kSamples; ++s) {
    for (int i = 0; i < 2; ++i) want[i] = std::max(want[i], SmallSample(s, 0, 2).amax[2 + i]);
  }
  std::mt19937 random(5);
  for (int round = 0; round < 20; ++round) {
    TestRun run;
    std::vector<uint32_t> order = {0, 1, 2, 3, 0, 2, 2};
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::vector<Record>> slots[2];
    for (const uint32_t s : order) slots[random() % 2].push_back(SampleSlot(s, StageId(0), 0, 2));
    run.Write("stage.00", slots[0]);
    run.Write("stage.00", slots[1]);
    RunState state(run.fs, run.layout);
    HOLDFAST_ASSERT_OK(state.Refresh());
    const auto amax = state.ReducedAmax(1);
    HOLDFAST_ASSERT_OK(amax);
    EXPECT_EQ(*amax, want);
    EXPECT_EQ(state.nondeterminism(), 0u);
    EXPECT_EQ(state.stages().at(StageId(0)).claims.size(), 2u);
    EXPECT_EQ(state.ReducedAmax(2).code(), ErrorCode::kNotFound);
    EXPECT_TRUE(state.SampleCovers(1, 0, 2));
    EXPECT_FALSE(state.SampleCovers(1, 0, 3));
  }
}

TEST(Fold, NanIsTheTop) {
  TestRun run;
  std::vector<std::vector<Record>> slots;
  for (uint32_t s = 0; s < kSamples; ++s) {
    SampleRecord r = SmallSample(s, 2, 3);
    if (s == 1) r.amax[0] = std::nanf("");
    slots.push_back(r.ToRecords(StageId(1)));
  }
  run.Write("stage.01", slots);
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(std::isnan((*state.ReducedAmax(2))[0]));
  EXPECT_FALSE(std::isnan((*state.ReducedAmax(2))[1]));
}

TEST(Fold, FirstWinsAndAContradictionIsCounted) {
  TestRun run;
  run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 2, 1), SampleSlot(0, StageId(0), 0, 2, 100), SampleSlot(0, StageId(0), 0, 2, 1)});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.Sample(0, 0)->amax, SmallSample(0, 0, 2, 1).amax);
  EXPECT_EQ(state.nondeterminism(), 1u);
}

TEST(Fold, LayerGroupsOfOneStageAndOtherPlansAreUsed) {
  TestRun run(4, {{StageId(0), 0, 4}});
  run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 1), SampleSlot(0, StageId(0), 1, 3)});
  run.Write("stage.07", {SampleSlot(0, StageId(7), 2, 4, 50)});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.SampleCovers(0, 0, 4));
  EXPECT_EQ(state.Sample(0, 2)->first_layer, 1u) << "the lower stage counts";
  EXPECT_EQ(state.Sample(0, 3)->first_layer, 2u);
}

// Four stages of one layer, and what an earlier plan left behind: who works on layer 2 reads that and its own, not its neighbours'.
TEST(Fold, WhoWorksOnSomeLayersReadsOnlyTheirStreams) {
  TestRun run(4, {{StageId(0), 0, 2}, {StageId(1), 2, 4}});
  Plan cut = SmallPlan(4, {{StageId(2), 0, 1}, {StageId(3), 1, 2}, {StageId(4), 2, 3}, {StageId(5), 3, 4}});
  cut.number = 1;
  run.Write("job", {{MakeControl({RecordClass::kPlan, 0, 1, 0, 0}, cut.ToJson())}});
  run.Write("stage.01", {SampleSlot(0, StageId(1), 2, 4)});
  run.Write("stage.02", {SampleSlot(1, StageId(2), 0, 1)});
  run.Write("stage.03", {SampleSlot(1, StageId(3), 1, 2)});
  run.Write("stage.04", {SampleSlot(1, StageId(4), 2, 3)});
  run.Write("stage.09", {SampleSlot(2, StageId(9), 2, 3)});
  run.Write("merge", {});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.RefreshLayers({{2, 3}}));
  EXPECT_EQ(state.plan().number, 1u);
  EXPECT_EQ(state.stages().count(StageId(2)) + state.stages().count(StageId(3)), 0u);
  for (const uint32_t sample : {0u, 1u, 2u}) EXPECT_TRUE(state.SampleCovers(sample, 2, 3)) << sample;
  EXPECT_EQ(state.Sample(0, 2)->last_layer, 4u) << "the earlier plan's stream has the lower number";
  EXPECT_TRUE(state.stages().contains(StageId(9))) << "no plan knows it: it might say anything";
  EXPECT_EQ(state.merge_stream().next_seq, 1u);

  run.Write("stage.03", {SampleSlot(2, StageId(3), 1, 2)});
  HOLDFAST_ASSERT_OK(state.RefreshLayers({{1, 3}}));
  EXPECT_TRUE(state.SampleCovers(1, 1, 2) && state.SampleCovers(2, 1, 2));
  EXPECT_FALSE(state.stages().contains(StageId(2)));
  run.Write("stage.03", {SampleSlot(3, StageId(3), 1, 2)});
  run.Write("stage.04", {SampleSlot(3, StageId(4), 2, 3)});
  HOLDFAST_ASSERT_OK(state.RefreshCutsBefore(2));
  EXPECT_TRUE(state.SampleCovers(3, 1, 2));
  EXPECT_FALSE(state.SampleCovers(3, 2, 3));
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.SampleCovers(1, 0, 3) && state.SampleCovers(3, 2, 3));
}

TEST(Fold, VoidedSlotReopensItsWork) {
  TestRun run;
  run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 2), SampleSlot(1, StageId(0), 0, 2), LayerSlot(StageId(0), 0)});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_NE(state.Sample(0, 0), nullptr);
  EXPECT_NE(state.Layer(0), nullptr);
  run.Write("stage.00", {VoidSlot(StageId(0), 1), VoidSlot(StageId(0), 3)});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.Sample(0, 0), nullptr);
  EXPECT_NE(state.Sample(1, 0), nullptr);
  EXPECT_EQ(state.Layer(0), nullptr);
  run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 2, 3)});  // done again: now this counts, and contradicts nothing
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.Sample(0, 0)->amax, SmallSample(0, 0, 2, 3).amax);
  EXPECT_EQ(state.nondeterminism(), 0u);

  RunState fresh(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(fresh.Refresh());
  EXPECT_EQ(fresh.Sample(0, 0)->amax, SmallSample(0, 0, 2, 3).amax);
}

TEST(Fold, VoidedSlotLetsALaterStatementCount) {
  TestRun run;
  run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 2, 1), SampleSlot(0, StageId(0), 0, 2, 2)});
  run.Write("stage.00", {VoidSlot(StageId(0), 1)});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.Sample(0, 0)->amax, SmallSample(0, 0, 2, 2).amax);
}

TEST(Fold, VoidedKeyStrikesWhatCameBeforeInThatStreamOnly) {
  TestRun run;
  run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 2, 1), SampleSlot(0, StageId(0), 0, 2, 2)});
  run.Write("stage.07", {SampleSlot(0, StageId(7), 0, 2, 5)});
  run.Write("stage.00", {VoidKey({RecordClass::kSample, 0, 0, 0, 0})});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.Sample(0, 0)->amax, SmallSample(0, 0, 2, 5).amax);
  run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 2, 3)});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.Sample(0, 0)->amax, SmallSample(0, 0, 2, 3).amax);
}

TEST(Fold, SealCountsWhileItHolds) {
  TestRun run;
  std::vector<std::vector<Record>> slots;
  for (uint32_t s = 0; s < kSamples; ++s) slots.push_back(SampleSlot(s, StageId(0), 0, 2));
  for (const uint32_t unit : {0u, 1u, 3u}) slots.push_back(LayerSlot(StageId(0), unit));
  slots.push_back({MakeControl({RecordClass::kSeal, 0, 0, 0, 0}, SealRecord{kSamples, 0, 2, DigestOf(1), {}}.ToJson())});
  run.Write("stage.00", slots);
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.stages().at(StageId(0)).seal.has_value());
  HOLDFAST_EXPECT_OK(SealRoot(state, 0, 2, UnitsOf(state.plan(), state.plan().stages[0])));
  run.Write("stage.00", {VoidSlot(StageId(0), 2)});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_FALSE(state.stages().at(StageId(0)).seal.has_value());
  run.Write("stage.00", {SampleSlot(1, StageId(0), 0, 2)});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.stages().at(StageId(0)).seal.has_value());
}

TEST(Fold, WriterThroughTheStateKeepsItCurrent) {
  TestRun run;
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  StreamWriter::Options options;
  options.job = run.job;
  options.claim.incarnation = NonceOf(5);
  auto writer = StreamWriter::Open(run.fs, run.layout, run.clock, state.ReaderOf("stage.00"),
                                   [&](const Record& r, const Slot& s) { return state.Apply("stage.00", r, s); }, options);
  HOLDFAST_ASSERT_OK(writer);
  EXPECT_EQ(state.stages().at(StageId(0)).claims.size(), 1u);
  HOLDFAST_ASSERT_OK((*writer)->Append(SampleSlot(2, StageId(0), 0, 2)));
  EXPECT_NE(state.Sample(2, 1), nullptr);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.nondeterminism(), 0u);
  HOLDFAST_ASSERT_OK((*writer)->Append(SampleSlot(3, StageId(0), 0, 2)));
  HOLDFAST_ASSERT_OK((*writer)->ReleaseStream("done"));
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.stages().at(StageId(0)).stream.released);
  EXPECT_EQ(state.stages().at(StageId(0)).stream.next_seq, 4u);
}

TEST(Fold, RecordsThatDoNotDecodeAreNotThere) {
  TestRun run;
  Record junk;
  junk.key = {RecordClass::kLayer, 0, 1, 0, 0};
  junk.payload = RandomBytes(50, 1);
  run.Write("stage.00", {{junk}, LayerSlot(StageId(0), 1)});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.invalid_records(), 1u);
  EXPECT_NE(state.Layer(1), nullptr);
}

TEST(Fold, MergeStepsAndDone) {
  TestRun run;
  const auto step = [](uint32_t file, MergeRecord::State state, const std::string& staging) {
    const MergeRecord m{file, state, "f", staging, 1, DigestOf(1)};
    return std::vector<Record>{MakeControl({RecordClass::kMerge, 0, file, 0, static_cast<uint32_t>(state)}, m.ToJson())};
  };
  run.Write("merge", {step(0, MergeRecord::State::kBegun, "a"), step(0, MergeRecord::State::kWritten, "a"), step(0, MergeRecord::State::kWritten, "b"),
                      step(kWholeOutput, MergeRecord::State::kPublished, "b")});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.merge_written().at(0).staging, "b");
  EXPECT_TRUE(state.published().has_value());
  EXPECT_FALSE(state.done().has_value());
  run.Write("merge", {{MakeControl({RecordClass::kDone, 0, 0, 0, 0}, DoneRecord{DigestOf(2), Json::object()}.ToJson())}});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.done().has_value());
}

TEST(Fold, GapAndBadSlotAreNamedAndATombstoneCuresThem) {
  for (const bool missing : {true, false}) {
    TestRun run;
    run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 2), SampleSlot(1, StageId(0), 0, 2), SampleSlot(2, StageId(0), 0, 2)});
    const std::string path = run.layout.Slot("stage.00", 2);
    if (missing) {
      HOLDFAST_ASSERT_OK(run.fs.Unlink(path));
    } else {
      run.fs.Corrupt(path, 5000, 4);
    }
    RunState broken(run.fs, run.layout);
    const Status s = broken.Refresh();
    ASSERT_EQ(s.code(), ErrorCode::kCorrupt);
    EXPECT_NE(s.error().message.find(path), std::string::npos) << s.error().message;
    EXPECT_NE(s.error().message.find("jobctl fsck"), std::string::npos);

    Tombstone t;
    t.job = run.job;
    t.incarnation = NonceOf(9);
    t.stream = "stage.00";
    t.seq = 2;
    t.epoch = 1;
    Digest prev;
    t.prev = ReadSlot(run.fs, run.layout, "stage.00", 1, run.job, &prev)->digest;
    (void)*ReadSlot(run.fs, run.layout, "stage.00", 3, run.job, &t.carries);
    HOLDFAST_ASSERT_OK(PlaceTombstone(run.fs, run.layout, run.clock, t, !missing));
    RunState state(run.fs, run.layout);
    HOLDFAST_ASSERT_OK(state.Refresh());
    EXPECT_NE(state.Sample(0, 0), nullptr);
    EXPECT_EQ(state.Sample(1, 0), nullptr) << "its work is open again";
    EXPECT_NE(state.Sample(2, 0), nullptr);
    run.Write("stage.00", {SampleSlot(1, StageId(0), 0, 2)});
    HOLDFAST_ASSERT_OK(state.Refresh());
    EXPECT_NE(state.Sample(1, 0), nullptr);
  }
}

TEST(Fold, LostClaimKeepsItsEpochThroughTheTombstone) {
  TestRun run;
  run.Write("stage.00", {});
  run.Write("stage.00", {SampleSlot(0, StageId(0), 0, 2)});  // slot 1 is its claim of epoch 2
  HOLDFAST_ASSERT_OK(run.fs.Unlink(run.layout.Slot("stage.00", 1)));
  Tombstone t;
  t.job = run.job;
  t.incarnation = NonceOf(9);
  t.stream = "stage.00";
  t.seq = 1;
  t.epoch = 2;
  Digest prev;
  t.prev = ReadSlot(run.fs, run.layout, "stage.00", 0, run.job, &prev)->digest;
  (void)*ReadSlot(run.fs, run.layout, "stage.00", 2, run.job, &t.carries);
  HOLDFAST_ASSERT_OK(PlaceTombstone(run.fs, run.layout, run.clock, t, false));
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_NE(state.Sample(0, 0), nullptr);
  EXPECT_EQ(state.stages().at(StageId(0)).stream.epoch, 2u);
}

// ---- clusters ----

Record AssignmentRecord(uint32_t number, const std::string& why, uint32_t b = 0) {
  Assignment a;
  a.number = number;
  a.stages = {{StageId(0), "n1", ""}, {StageId(1), "", "waits"}};
  a.why = why;
  return MakeControl({RecordClass::kAssignment, 0, number, b, 0}, a.ToJson());
}

TEST(Fold, TheLatestAssignmentCountsAndOfEqualsTheFirst) {
  TestRun run;
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_FALSE(state.assignment());
  Record broken = AssignmentRecord(9, "broken");
  broken.payload.pop_back();
  run.Write("job", {{AssignmentRecord(1, "start")}, {AssignmentRecord(2, "lost node n3")}, {AssignmentRecord(2, "too late", 1)}, {broken}});
  run.Write("stage.00", {{AssignmentRecord(7, "not here")}});
  HOLDFAST_ASSERT_OK(state.Refresh());
  ASSERT_TRUE(state.assignment());
  EXPECT_EQ(state.assignment()->why, "lost node n3");
  EXPECT_EQ(state.assignment()->stages[1].note, "waits");
  run.Write("job", {VoidKey({RecordClass::kAssignment, 0, 2, 0, 0}), VoidKey({RecordClass::kAssignment, 0, 2, 1, 0})});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.assignment()->why, "start");
}

TEST(Fold, IncarnationsAreKnownFromEveryStream) {
  TestRun run;
  Incarnation worker;
  worker.node = "n1";
  worker.nonce = NonceOf(0x51);
  worker.endpoint = "tcp://10.0.0.1:7";
  run.Write("stage.01", {}, {MakeControl({RecordClass::kIncarnation, 1, 0, 0, 0}, worker.ToJson())});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  ASSERT_NE(state.IncarnationOf(NonceOf(0x51)), nullptr);
  EXPECT_EQ(state.IncarnationOf(NonceOf(0x51))->endpoint, "tcp://10.0.0.1:7");
  EXPECT_EQ(state.IncarnationOf(NonceOf(0x52)), nullptr);
}

TEST(Fold, WhyTheJobWasLaidDown) {
  TestRun run;
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.job_release_reason(), "");
  const auto release = [](uint64_t epoch, const std::string& why) {
    return std::vector<Record>{MakeControl({RecordClass::kRelease, 0, static_cast<uint32_t>(epoch), 0, 0}, Release{epoch, why}.ToJson())};
  };
  run.Write("job", {release(2, "drain")});
  run.Write("stage.00", {release(1, "done")});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.job_release_reason(), "drain");
  run.Write("job", {});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.job_release_reason(), "");
}

// Two nodes of two classes share a stage, one after the other. What each did is told by the claim that stood there.
TEST(Fold, SharesFollowTheClaims) {
  TestRun run;
  const auto write = [&](const std::string& stream, const std::string& node, const std::string& numerics, const std::vector<std::vector<Record>>& slots) {
    StreamReader reader(run.fs, run.layout, stream, run.job);
    StreamWriter::Options options;
    options.job = run.job;
    options.claim.incarnation = NonceOf(run.lives++);
    options.claim.node = node;
    options.claim.numerics = numerics;
    auto writer = StreamWriter::Open(run.fs, run.layout, run.clock, &reader, nullptr, options);
    HOLDFAST_ASSERT_OK(writer);
    for (const auto& slot : slots) HOLDFAST_ASSERT_OK((*writer)->Append(slot));
  };
  const auto sample = [](uint32_t number, StageId stage, uint32_t first, uint32_t last, const std::string& numerics) {
    SampleRecord s = SmallSample(number, first, last);
    s.numerics = numerics;
    return s.ToRecords(stage);
  };
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(EffectiveNumerics(state), state.job().numerics);
  EXPECT_TRUE(state.Shares().empty());

  const StageId s0(0), s1(1);
  write("stage.00", "spark1", "gb10", {sample(0, s0, 0, 2, "gb10"), sample(1, s0, 0, 2, "gb10"), LayerSlot(s0, 0)});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(EffectiveNumerics(state), "gb10");
  write("stage.00", "box", "sm86", {sample(1, s0, 0, 2, "sm86"), sample(2, s0, 0, 2, "sm86"), LayerSlot(s0, 0), LayerSlot(s0, 1)});
  write("stage.01", "spark1", "gb10", {sample(0, s1, 2, 3, "gb10"), LayerSlot(s1, 2)});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(EffectiveNumerics(state), "mixed: gb10, sm86");
  const auto shares = state.Shares();
  ASSERT_EQ(shares.size(), 2u);
  EXPECT_EQ(shares.at({"spark1", "gb10"}).samples, 3u);   // two of the first stage, one of the second
  EXPECT_EQ(shares.at({"spark1", "gb10"}).units, 2u);     // layers 0 and 2
  EXPECT_EQ(shares.at({"box", "sm86"}).samples, 1u);      // sample 1 was there already: first valid wins
  EXPECT_EQ(shares.at({"box", "sm86"}).units, 1u);
}

// About as many slots as a large job has. Refresh reads each once.
// ---- samples that are left out ----

Record OmitOf(uint32_t sample) {
  return MakeControl({RecordClass::kOmit, 0, sample, 0, 0}, OmitRecord{sample, StageId(0), "ended 2 workers"}.ToJson());
}

Record LayerWithout(uint32_t unit, std::vector<uint32_t> omitted, uint8_t source = 1) {
  LayerRecord l;
  l.unit = unit;
  l.source = DigestOf(source);
  if (unit < 1) l.input_amax = {1}, l.omitted = std::move(omitted);
  return MakeControl({RecordClass::kLayer, 0, unit, 0, 0}, l.ToJson());
}

Record SealWithout(std::vector<uint32_t> omitted) {
  SealRecord z;
  z.samples = kSamples;
  z.last_layer = 1;
  z.omitted = std::move(omitted);
  return MakeControl({RecordClass::kSeal, 0, 0, 0, 0}, z.ToJson());
}

// One stage of one layer, all of its samples but those of `without` committed, and everything evicted and sealed without `omitted`.
struct OneStage : TestRun {
  OneStage(uint32_t skip, const std::vector<uint32_t>& without, const std::vector<uint32_t>& omitted);
};
OneStage::OneStage(uint32_t skip, const std::vector<uint32_t>& without, const std::vector<uint32_t>& omitted) : TestRun(1, {{StageId(0), 0, 1}}, skip) {
  std::vector<std::vector<Record>> slots;
  for (uint32_t s = 0; s < kSamples; ++s) {
    if (std::find(without.begin(), without.end(), s) == without.end()) slots.push_back(SampleSlot(s, StageId(0), 0, 1, static_cast<float>(s + 1)));
  }
  for (uint32_t unit = 0; unit < 3; ++unit) slots.push_back({LayerWithout(unit, omitted)});
  slots.push_back({SealWithout(omitted)});
  Write("stage.00", slots);
}

bool SealedIn(TestRun& run) {
  RunState state(run.fs, run.layout);
  HOLDFAST_EXPECT_OK(state.Refresh());
  return state.stages().at(StageId(0)).seal.has_value();
}

TEST(FoldOmission, ASampleThatIsLeftOutIsNotNeededAndItsAmaxDoesNotCount) {
  OneStage run(1, {2}, {2});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_FALSE(state.stages().at(StageId(0)).seal);
  EXPECT_EQ(state.ReducedAmax(0).code(), ErrorCode::kNotFound);
  EXPECT_EQ(state.skips_left(), 1u);
  run.Write("job", {{OmitOf(2)}});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.Omitted(2));
  EXPECT_EQ(state.samples_in(), kSamples - 1);
  EXPECT_EQ(state.skips_left(), 0u);
  EXPECT_TRUE(state.stages().at(StageId(0)).seal);
  HOLDFAST_EXPECT_OK(state.ReducedAmax(0).ok() ? OkStatus() : Status(state.ReducedAmax(0).error()));
}

TEST(FoldOmission, WhatItWasComputedOfCountsNowhereAndTheSealOpensAgain) {
  OneStage run(1, {}, {});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  ASSERT_TRUE(state.stages().at(StageId(0)).seal);
  const std::vector<float> all = *state.ReducedAmax(0);
  run.Write("job", {{OmitOf(3)}});        // the one of the largest amax
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_FALSE(state.stages().at(StageId(0)).seal);
  EXPECT_EQ(state.Layer(0), nullptr);     // made of samples that do not count
  EXPECT_NE(state.Layer(1), nullptr);     // no sample went into it
  const std::vector<float> fewer = *state.ReducedAmax(0);
  ASSERT_EQ(fewer.size(), all.size());
  EXPECT_LT(fewer[0], all[0]);
  // Made again without it: no nondeterminism, another layer.
  run.Write("stage.00", {{LayerWithout(0, {3}, 2)}, {SealWithout({3})}});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.stages().at(StageId(0)).seal);
  ASSERT_NE(state.Layer(0), nullptr);
  EXPECT_EQ(state.Layer(0)->source, DigestOf(2));
  EXPECT_EQ(state.nondeterminism(), 0u);
  uint64_t counted = 0;
  for (const auto& [who, share] : state.Shares()) counted += share.samples;
  EXPECT_EQ(counted, kSamples - 1);
  // The omission is voided: everything is as it was.
  run.Write("job", {VoidKey({RecordClass::kOmit, 0, 3, 0, 0})});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_TRUE(state.omitted().empty());
  EXPECT_TRUE(state.stages().at(StageId(0)).seal);
  EXPECT_EQ(state.Layer(0)->source, DigestOf(1));
  EXPECT_EQ(*state.ReducedAmax(0), all);
}

TEST(FoldOmission, ADifferentLayerOfTheSameSamplesIsStillNondeterminism) {
  OneStage run(1, {}, {});
  run.Write("job", {{OmitOf(3)}});
  run.Write("stage.00", {{LayerWithout(0, {3}, 2)}, {LayerWithout(0, {3}, 3)}});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.nondeterminism(), 1u);
}

TEST(FoldOmission, OnlyAsManyAsTheJobAllowsAndOnlyInItsOwnStream) {
  OneStage none(0, {2}, {2});
  none.Write("job", {{OmitOf(2)}});
  EXPECT_FALSE(SealedIn(none));
  OneStage run(1, {2}, {2});
  run.Write("stage.00", {{OmitOf(2)}});
  EXPECT_FALSE(SealedIn(run));
  run.Write("job", {{OmitOf(kSamples + 5)}, {OmitOf(2)}, {OmitOf(0)}});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.OmittedSamples(), (std::vector<uint32_t>{2}));
  EXPECT_TRUE(state.stages().at(StageId(0)).seal);
}

TEST(FoldOmission, NoMoreOnceAMergeWasGivenToANode) {
  OneStage run(2, {2}, {2});
  run.Write("job", {{OmitOf(2)}});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.skips_left(), 1u);
  Assignment a;
  a.merge_node = "n1";
  run.Write("job", {{MakeControl({RecordClass::kAssignment, 0, 0, 0, 0}, a.ToJson())}});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_EQ(state.skips_left(), 0u);
  EXPECT_TRUE(state.Omitted(2));
}

TEST(FoldOmission, ABlameStandsUntilTheNextLife) {
  TestRun run(1, {{StageId(0), 0, 1}}, 1);
  PhaseBegin b;
  b.phase = kPhaseBlame;
  b.sample = 2;
  b.why = "ended 2 workers";
  run.Write("stage.00", {{MakeControl({RecordClass::kPhase, 0, 'x', 1, 2}, b.ToJson())}});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  const StageState& stage = state.stages().at(StageId(0));
  ASSERT_TRUE(stage.blame);
  EXPECT_EQ(stage.blame->sample, 2u);
  EXPECT_EQ(stage.blame->why, "ended 2 workers");
  EXPECT_TRUE(stage.suspicion.tries.empty());   // no try
  EXPECT_FALSE(stage.phase);
  run.Write("stage.00", {});
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_FALSE(state.stages().at(StageId(0)).blame);
}

TEST(Fold, AThousandSlotsFoldQuickly) {
  TestRun run(1, {{StageId(0), 0, 1}});
  std::vector<std::vector<Record>> slots;
  for (uint32_t i = 0; i < 1000; ++i) slots.push_back(SampleSlot(i, StageId(0), 0, 1));
  run.Write("stage.00", slots);
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  for (int i = 0; i < 100; ++i) HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_NE(state.Sample(999, 0), nullptr);
}

}  // namespace
}  // namespace holdfast
