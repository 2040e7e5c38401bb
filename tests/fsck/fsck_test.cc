// SPDX-License-Identifier: Apache-2.0
//
// Clean jobs are clean at every step; every kind of damage is found under its own code and with its own bits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "export/merge/merge.h"
#include "tests/fsck/tiny_run.h"

namespace holdfast::testing {
namespace {

constexpr int kLostAndErrors = kFsckDataLost | kFsckErrorsLeft;

std::string Text(const FsckReport& r) { return FsckReportToText("RUN", r); }

bool Has(const FsckReport& r, const std::string& code, const std::string& object = "") {
  return std::any_of(r.findings.begin(), r.findings.end(),
                     [&](const FsckFinding& f) { return f.code == code && (object.empty() || f.object.find(object) != std::string::npos); });
}

void Expect(const FsckReport& r, int exit_status, const std::string& code, const std::string& object = "") {
  EXPECT_EQ(r.exit_status, exit_status) << Text(r);
  EXPECT_TRUE(Has(r, code, object)) << code << " " << object << " is not among\n" << Text(r);
}

// ---- clean ----

TEST(FsckClean, AtEveryStep) {
  const struct { Until until; const char* state; } kSteps[] = {{Until::kFormat, "no job yet"}, {Until::kJob, "running or stopped"},
      {Until::kSamples, "running or stopped"}, {Until::kEvicted, "running or stopped"}, {Until::kSealed, "running or stopped"},
      {Until::kMerged, "published"}, {Until::kDone, "done"}};
  for (const auto& step : kSteps) {
    TinyRun run({.until = step.until});
    for (const bool deep : {false, true}) {
      const FsckReport r = run.Fsck(deep);
      EXPECT_EQ(r.exit_status, 0) << Text(r);
      EXPECT_EQ(r.state, step.state);
      for (const FsckFinding& f : r.findings) EXPECT_EQ(f.severity, FsckSeverity::kInfo) << Text(r);
    }
  }
}

TEST(FsckClean, AFinishedJobHasNoFindingsAtAll) {
  TinyRun run;
  const FsckReport r = run.Fsck(true);
  EXPECT_TRUE(r.findings.empty()) << Text(r);
  EXPECT_EQ(r.streams, 4u);
  EXPECT_GT(r.packs, 4u);
  EXPECT_GT(r.records, 10u);
}

TEST(FsckClean, ProgressReachesTheEnd) {
  TinyRun run;
  uint64_t done = 0, total = 0;
  const FsckReport r = RunFsck(run.fs, run.dir, {.deep = true, .threads = 3, .on_progress = [&](uint64_t d, uint64_t t) { done = d, total = t; }});
  EXPECT_EQ(r.exit_status, 0);
  EXPECT_GT(done, 0u);
  EXPECT_EQ(done, total);
}

TEST(FsckClean, JsonHasStableFields) {
  TinyRun run;
  run.Delete(run.SlotPath("stage.00", 1));
  const FsckReport r = run.Fsck();
  const Json j = FsckReportToJson(run.dir, r);
  EXPECT_EQ(j["schema"], 1);
  EXPECT_EQ(j["exit_status"], r.exit_status);
  EXPECT_EQ(j["findings"].size(), r.findings.size());
  EXPECT_EQ(j["findings"][0]["code"], "F010");
  EXPECT_EQ(j["findings"][0]["name"], "GAP");
  EXPECT_EQ(j["findings"][0]["severity"], "error");
}

TEST(FsckOperational, NoSuchDirectory) {
  PosixFileSystem fs;
  Expect(RunFsck(fs, "/nonexistent/run", {}), kFsckOperational, "F000");
}

TEST(FsckOperational, NotARunDirectory) {
  TempDir temp;
  PosixFileSystem fs;
  Expect(RunFsck(fs, temp.path(), {}), kFsckOperational, "F000");
}

// ---- FORMAT ----

TEST(FsckFormat, EveryByteIsGuarded) {
  TinyRun run({.until = Until::kJob});
  const Bytes sound = Slurp(run.layout.FormatFile());
  for (size_t at = 0; at < sound.size(); ++at) {
    for (const int bit : {0, 5, 7}) {
      Bytes damaged = sound;
      damaged[at] ^= static_cast<uint8_t>(1 << bit);
      run.Rewrite(run.layout.FormatFile(), damaged);
      const FsckReport r = run.Fsck();
      ASSERT_EQ(r.exit_status, kFsckErrorsLeft) << "byte " << at << " bit " << bit << "\n" << Text(r);
      ASSERT_TRUE(Has(r, "F001")) << Text(r);
    }
  }
  run.Rewrite(run.layout.FormatFile(), sound);
  EXPECT_EQ(run.Fsck().exit_status, 0);
}

TEST(FsckFormat, Missing) {
  TinyRun run({.until = Until::kJob});
  run.Delete(run.layout.FormatFile());
  Expect(run.Fsck(), kFsckErrorsLeft, "F001", "FORMAT");
}

// ---- slots ----

TEST(FsckSlots, EveryByteOfASlotIsGuarded) {
  TinyRun run({.until = Until::kSamples});
  const std::string path = run.SlotPath("stage.00", 2);
  const Bytes sound = Slurp(path);
  std::mt19937 random(7);
  for (size_t at = 0; at < sound.size(); ++at) {
    Bytes damaged = sound;
    damaged[at] ^= static_cast<uint8_t>(1 + random() % 255);
    run.Rewrite(path, damaged);
    const FsckReport r = run.Fsck(false, 1);
    ASSERT_EQ(r.exit_status, kLostAndErrors) << "byte " << at << "\n" << Text(r);
    ASSERT_TRUE(Has(r, "F011", "log/stage.00/00000002.seg") || Has(r, "F012", "log/stage.00/00000002.seg")) << "byte " << at << "\n" << Text(r);
  }
  run.Rewrite(path, sound);
  EXPECT_EQ(run.Fsck().exit_status, 0);
}

TEST(FsckSlots, MissingInTheMiddle) {
  TinyRun run;
  run.Delete(run.SlotPath("stage.00", 2));
  Expect(run.Fsck(), kLostAndErrors, "F010", "log/stage.00/00000002.seg");
}

TEST(FsckSlots, MissingClaimDoesNotHideTheRest) {
  TinyRun run;
  run.Delete(run.SlotPath("stage.01", 0));
  const FsckReport r = run.Fsck();
  Expect(r, kLostAndErrors, "F010", "log/stage.01/00000000.seg");
  EXPECT_FALSE(Has(r, "F031")) << Text(r);
  EXPECT_FALSE(Has(r, "F043")) << Text(r);
}

TEST(FsckSlots, MissingJobRecord) {
  TinyRun run;
  run.Delete(run.SlotPath("job", 0));
  const FsckReport r = run.Fsck();
  Expect(r, kLostAndErrors, "F002");
  EXPECT_TRUE(Has(r, "F010", "log/job/00000000.seg")) << Text(r);
}

TEST(FsckSlots, Truncated) {
  TinyRun run;
  const std::string path = run.SlotPath("stage.01", 2);
  const Bytes sound = Slurp(path);
  for (const size_t keep : {size_t{0}, size_t{1}, size_t{191}, size_t{192}, sound.size() / 2, sound.size() - 1}) {
    run.Rewrite(path, ByteSpan(sound).first(keep));
    Expect(run.Fsck(), kLostAndErrors, "F011", "log/stage.01/00000002.seg");
  }
}

TEST(FsckSlots, Longer) {
  TinyRun run;
  const std::string path = run.SlotPath("stage.01", 2);
  Bytes longer = Slurp(path);
  longer.insert(longer.begin(), 100, 0);
  run.Rewrite(path, longer);
  Expect(run.Fsck(), kLostAndErrors, "F011", "log/stage.01/00000002.seg");
}

TEST(FsckSlots, TwoSwapped) {
  TinyRun run;
  const Bytes a = Slurp(run.SlotPath("stage.00", 1)), b = Slurp(run.SlotPath("stage.00", 2));
  run.Rewrite(run.SlotPath("stage.00", 1), b);
  run.Rewrite(run.SlotPath("stage.00", 2), a);
  const FsckReport r = run.Fsck();
  Expect(r, kLostAndErrors, "F013", "log/stage.00/00000001.seg");
  EXPECT_TRUE(Has(r, "F013", "log/stage.00/00000002.seg")) << Text(r);
}

TEST(FsckSlots, OfAnotherStream) {
  TinyRun run;
  run.Rewrite(run.SlotPath("stage.00", 2), Slurp(run.SlotPath("stage.01", 2)));
  Expect(run.Fsck(), kLostAndErrors, "F013", "log/stage.00/00000002.seg");
}

TEST(FsckSlots, OfAnotherJob) {
  TinyRun run, other;
  run.Rewrite(run.SlotPath("stage.00", 2), Slurp(other.SlotPath("stage.00", 2)));
  Expect(run.Fsck(), kLostAndErrors, "F013", "log/stage.00/00000002.seg");
}

TEST(FsckSlots, ChainBroken) {
  // The same job forked: two owners wrote slot 1 on from the same slot 0, and somebody mixed the files.
  TinyRun run({.until = Until::kSamples});
  Bytes slot = Slurp(run.SlotPath("stage.00", 2));
  ASSERT_GT(slot.size(), 192u);
  const size_t trailer = slot.size() - 192;
  slot[trailer + 120] ^= 1;   // prev
  const uint32_t crc = Crc32c(ByteSpan(slot).subspan(trailer, 188));
  for (int i = 0; i < 4; ++i) slot[trailer + 188 + i] = static_cast<uint8_t>(crc >> (8 * i));
  run.Rewrite(run.SlotPath("stage.00", 2), slot);
  const FsckReport r = run.Fsck();
  Expect(r, kLostAndErrors, "F014", "log/stage.00/00000002.seg");
}

TEST(FsckSlots, ForeignNames) {
  TinyRun run;
  Spill(run.dir + "/log/notes.txt", AsBytes("x"));
  Expect(run.Fsck(), kFsckErrorsLeft, "F003", "log/notes.txt");
  run.Delete(run.dir + "/log/notes.txt");
  Spill(run.dir + "/log/stage.00/00000001.seg~", AsBytes("x"));
  Expect(run.Fsck(), kFsckErrorsLeft, "F003", "00000001.seg~");
  run.Delete(run.dir + "/log/stage.00/00000001.seg~");
  Spill(run.dir + "/log/stage.00/.nfs000001", AsBytes("x"));
  Expect(run.Fsck(), 0, "F003", ".nfs000001");
}

TEST(FsckSlots, SecondName) {
  TinyRun run;
  ASSERT_TRUE(run.fs.MakeDirs(run.dir + "/tmp/x").ok());
  ASSERT_TRUE(run.fs.Link(run.SlotPath("stage.00", 1), run.dir + "/tmp/x/y").ok());
  Expect(run.Fsck(), 0, "F091", "log/stage.00/00000001.seg");
}

// ---- records ----

Record ClaimOf(uint64_t epoch) {
  Claim c;
  c.epoch = epoch;
  c.node = "other";
  c.reason = "takeover";
  return MakeControl({RecordClass::kClaim, 0, static_cast<uint32_t>(epoch), 0, 0}, c.ToJson());
}

TEST(FsckRecords, ClaimThatSkipsAnEpoch) {
  TinyRun run({.until = Until::kSamples});
  run.AppendSlot("stage.00", 3, {ClaimOf(3)});
  Expect(run.Fsck(), kFsckErrorsLeft, "F030", "log/stage.00/00000004.seg");
}

TEST(FsckRecords, StreamWithoutAClaim) {
  TinyRun run({.until = Until::kJob});
  ASSERT_TRUE(run.fs.MakeDirs(run.layout.StreamDir("stage.00")).ok());
  run.AppendSlot("stage.00", 0, {MakeControl({RecordClass::kRenew, 0, 0, 0, 0}, Json::object())});
  Expect(run.Fsck(), kFsckErrorsLeft, "F030", "log/stage.00/00000000.seg");
}

TEST(FsckRecords, RecordsOfAReplacedOwnerDoNotCount) {
  TinyRun run({.until = Until::kSamples});
  run.AppendSlot("stage.00", 2, {ClaimOf(2)});
  SealRecord z;   // would be a coverage error if it counted
  z.samples = 99;
  z.last_layer = 1;
  run.AppendSlot("stage.00", 1, {MakeControl({RecordClass::kSeal, 0, 0, 0, 0}, z.ToJson())});
  Expect(run.Fsck(), 0, "F031", "log/stage.00");
}

TEST(FsckRecords, PayloadThatDoesNotDecode) {
  TinyRun run({.until = Until::kSamples});
  run.AppendSlot("stage.00", 1, {MakeControl({RecordClass::kSeal, 0, 0, 0, 0}, Json::object())});
  Expect(run.Fsck(), kFsckErrorsLeft, "F020", "log/stage.00 slot 4");
}

TEST(FsckRecords, KeyAndHeaderDisagree) {
  TinyRun run({.until = Until::kSamples});
  Record r = MakeControl({RecordClass::kRenew, 0, 0, 0, 0}, Json::object());
  r.epoch = 1;
  const RecordKey other{RecordClass::kSeal, 0, 0, 0, 0};
  run.AppendRawSlot("stage.00", 1, {{other.Encode(), EncodeRecordValue(r)}}, 1);
  Expect(run.Fsck(), kLostAndErrors, "F021", "log/stage.00/00000004.seg");
}

TEST(FsckRecords, ValueThatIsNoRecord) {
  TinyRun run({.until = Until::kSamples});
  run.AppendRawSlot("stage.00", 1, {{RecordKey{RecordClass::kSeal, 0, 0, 0, 0}.Encode(), Bytes(60, 7)}}, 1);
  Expect(run.Fsck(), kLostAndErrors, "F020", "log/stage.00/00000004.seg");
}

TEST(FsckRecords, CountDiffersFromTheTrailer) {
  TinyRun run({.until = Until::kSamples});
  Record r = MakeControl({RecordClass::kRenew, 0, 0, 0, 0}, Json::object());
  r.epoch = 1;
  run.AppendRawSlot("stage.00", 1, {{r.key.Encode(), EncodeRecordValue(r)}}, 2);
  Expect(run.Fsck(), kLostAndErrors, "F015", "log/stage.00/00000004.seg");
}

TEST(FsckRecords, RepeatedSample) {
  SampleRecord kept;
  TinyRun run({.until = Until::kSamples, .edit_sample = [&](uint32_t stage, SampleRecord* r) {
                 if (stage == 0 && r->sample == 1) kept = *r;
               }});
  run.AppendSlot("stage.00", 1, kept.ToRecords(StageId(0)));
  Expect(run.Fsck(), 0, "F040", "sample 1");
  kept.amax[0] *= 2;
  run.AppendSlot("stage.00", 1, kept.ToRecords(StageId(0)));
  const FsckReport r = run.Fsck();
  Expect(r, 0, "F040", "sample 1");
  EXPECT_EQ(r.findings[0].severity, FsckSeverity::kWarning) << Text(r);
}

TEST(FsckRecords, VoidedSampleIsOpenAgain) {
  TinyRun run({.until = Until::kSamples});
  VoidRecord v;
  v.target = "slot";
  v.seq = 2;
  v.reason = "test";
  run.AppendSlot("stage.00", 1, {MakeControl({RecordClass::kVoid, 0, 2, 0, 0}, v.ToJson())});
  const FsckReport r = run.Fsck();
  Expect(r, 0, "F044", "sample 1");  // its successor was computed from a cut that was struck out: to be computed again, and no error
  EXPECT_THAT(Text(r), ::testing::HasSubstr("is to be computed again"));
}

// ---- layers ----

TEST(FsckLayers, TensorMissingOrOfAnotherShape) {
  TinyRun missing({.until = Until::kEvicted, .edit_layer = [](LayerRecord* e) {
                     if (e->unit == 1) e->tensors.pop_back();
                   }});
  Expect(missing.Fsck(), kFsckErrorsLeft, "F060", "layer 1");
  TinyRun shape({.until = Until::kEvicted, .edit_layer = [](LayerRecord* e) {
                   if (e->unit == 0) std::swap(e->tensors[0].name, e->tensors[4].name);
                 }});
  Expect(shape.Fsck(), kFsckErrorsLeft, "F060", "layer 0");
}

TEST(FsckLayers, InputAmaxIsNotTheMaximumOfTheSamples) {
  TinyRun run({.until = Until::kEvicted, .edit_layer = [](LayerRecord* e) {
                 if (e->unit == 1) e->input_amax[2] += 1;
               }});
  Expect(run.Fsck(), kFsckErrorsLeft, "F061", "layer 1");
}

TEST(FsckLayers, ScalesDoNotFollowFromTheAmax) {
  TinyRun run({.until = Until::kEvicted, .edit_layer = [](LayerRecord* e) {
                 if (e->unit == 1) e->weight_amax[3] += 1u << 23;
               }});
  EXPECT_EQ(run.Fsck().exit_status, 0);
  Expect(run.Fsck(true), kFsckErrorsLeft, "F061", "layer 1");
}

// ---- samples ----

TEST(FsckSamples, AmaxNan) {
  TinyRun run({.until = Until::kSamples, .edit_sample = [](uint32_t stage, SampleRecord* r) {
                 if (stage == 1 && r->sample == 1) r->amax[3] = NAN;
               }});
  Expect(run.Fsck(), kFsckErrorsLeft, "F041", "sample 1, layers 1-1");
}

TEST(FsckSamples, AmaxInfiniteOrNegative) {
  for (const float v : {INFINITY, -1.0f}) {
    TinyRun run({.until = Until::kSamples, .edit_sample = [v](uint32_t, SampleRecord* r) { r->amax[0] = v; }});
    Expect(run.Fsck(), kFsckErrorsLeft, "F041");
  }
}

TEST(FsckSamples, AmaxOfAnotherLength) {
  TinyRun run({.until = Until::kSamples, .edit_sample = [](uint32_t stage, SampleRecord* r) {
                 if (stage == 0 && r->sample == 2) r->amax.pop_back();
               }});
  Expect(run.Fsck(), kFsckErrorsLeft, "F041", "sample 2");
}

TEST(FsckSamples, DeadInput) {
  TinyRun run({.until = Until::kSealed, .edit_sample = [](uint32_t stage, SampleRecord* r) {
                 if (stage == 1) r->amax[6] = 0;
               }});
  Expect(run.Fsck(true), 0, "F042", "model.layers.1.mlp.down_proj");
}

TEST(FsckSamples, WrongInputDigest) {
  for (const uint32_t stage : {0u, 1u}) {
    TinyRun run({.until = Until::kSamples, .edit_sample = [stage](uint32_t at, SampleRecord* r) {
                   if (at == stage && r->sample == 2) r->input.bytes[0] ^= 1;
                 }});
    Expect(run.Fsck(), kFsckErrorsLeft, "F044", "sample 2");
  }
}

TEST(FsckSamples, SealWithoutCoverage) {
  TinyRun run({.until = Until::kSealed, .forget_sample = 1});
  const FsckReport r = run.Fsck();
  Expect(r, kFsckErrorsLeft, "F043", "stage.01");
}

TEST(FsckSamples, ASampleThatIsLeftOutIsNoDamage) {
  for (const Until until : {Until::kSamples, Until::kSealed, Until::kDone}) {
    TinyRun run({.until = until, .edit_sample = [](uint32_t, SampleRecord* r) {
                   if (r->sample == 1) r->amax[0] = INFINITY;
                 }, .omit_sample = 1});
    const FsckReport r = run.Fsck(true);
    Expect(r, 0, "F043", "sample 1");
    for (const FsckFinding& f : r.findings) EXPECT_NE(f.severity, FsckSeverity::kError) << f.code << " " << f.message;
  }
}

// A layer of all samples, and a seal of all samples, say nothing once one of them is left out.
TEST(FsckSamples, WhatWasMadeWithIsSupersededByWhatWasMadeWithout) {
  TinyRun run({.until = Until::kEvicted, .edit_layer = [](LayerRecord* e) { e->omitted.clear(); }, .omit_sample = 1});
  const FsckReport r = run.Fsck(true);
  Expect(r, kFsckErrorsLeft, "F061", "layer 0");   // it says that sample 1 is in it, and its amax says otherwise
}

// ---- packs ----

TEST(FsckPacks, Missing) {
  for (const Until until : {Until::kEvicted, Until::kDone}) {
    TinyRun run({.until = until});
    int errors = 0, infos = 0;
    for (const std::string& path : run.PackFiles()) {
      const Bytes bytes = Slurp(path);
      run.Delete(path);
      const FsckReport r = run.Fsck();
      const bool error = r.exit_status == kFsckErrorsLeft;
      ASSERT_TRUE(error ? Has(r, "F050", BaseName(path)) : Has(r, "F050", "pack") && r.exit_status == 0) << Text(r);
      error ? ++errors : ++infos;
      run.Rewrite(path, bytes);
    }
    EXPECT_GE(errors, 4) << "evicted units";
    EXPECT_GE(infos, 1) << "consumed cuts";
    EXPECT_EQ(run.Fsck(true).exit_status, 0);
  }
}

TEST(FsckPacks, MissingCutThatIsStillNeeded) {
  TinyRun run({.until = Until::kSamples, .forget_sample = 1});
  int errors = 0;
  for (const std::string& path : run.PackFiles()) {
    const Bytes bytes = Slurp(path);
    run.Delete(path);
    errors += run.Fsck().exit_status == kFsckErrorsLeft;
    run.Rewrite(path, bytes);
  }
  EXPECT_EQ(errors, 1);
}

TEST(FsckPacks, Truncated) {
  TinyRun run;
  const std::string path = run.PackFiles().front();
  const Bytes bytes = Slurp(path);
  run.Rewrite(path, ByteSpan(bytes).first(bytes.size() - 1));
  EXPECT_TRUE(Has(run.Fsck(), "F050", BaseName(path)));
}

TEST(FsckPacks, FlippedBytesAreFoundByDeep) {
  TinyRun run({.until = Until::kEvicted});
  std::mt19937 random(11);
  size_t flips = 0;
  for (const std::string& path : run.PackFiles()) {
    const Bytes sound = Slurp(path);
    for (int i = 0; i < 80; ++i, ++flips) {
      Bytes damaged = sound;
      const size_t at = random() % sound.size();
      damaged[at] ^= static_cast<uint8_t>(1 + random() % 255);
      run.Rewrite(path, damaged);
      const FsckReport r = run.Fsck(true, 1);
      ASSERT_EQ(r.exit_status, kFsckErrorsLeft) << path << " byte " << at << "\n" << Text(r);
      ASSERT_TRUE(Has(r, "F051", BaseName(path))) << path << " byte " << at << "\n" << Text(r);
    }
    EXPECT_EQ(run.Fsck(false).exit_status, 0) << "a shallow check reads no pack";
    run.Rewrite(path, sound);
  }
  EXPECT_GE(flips, 500u);
  EXPECT_EQ(run.Fsck(true).exit_status, 0);
}

TEST(FsckPacks, Misnamed) {
  TinyRun run;
  Spill(run.dir + "/pack/backup.pack", AsBytes("x"));
  ASSERT_TRUE(run.fs.MakeDirs(run.dir + "/pack/zz").ok());
  Spill(run.dir + "/pack/zz/x.pack", AsBytes("x"));
  const FsckReport r = run.Fsck();
  Expect(r, kFsckErrorsLeft, "F052", "pack/zz/x.pack");
  EXPECT_TRUE(Has(r, "F052", "pack/backup.pack")) << Text(r);
}

TEST(FsckPacks, Unreferenced) {
  TinyRun run;
  const std::string hex(64, 'a');
  ASSERT_TRUE(run.fs.MakeDirs(run.dir + "/pack/aa").ok());
  Spill(run.dir + "/pack/aa/" + hex + ".pack", AsBytes("x"));
  Expect(run.Fsck(true), 0, "F090", "pack");
}

// ---- source ----

TEST(FsckSource, ChangedWhileItIsNeeded) {
  TinyRun run({.until = Until::kSamples});
  const std::string path = run.source + "/model.safetensors";
  Bytes bytes = Slurp(path);
  bytes.back() ^= 1;
  run.Rewrite(path, bytes);
  const FsckReport shallow = run.Fsck();
  Expect(shallow, 0, "F070", "model.safetensors");   // touched: a hint only
  Expect(run.Fsck(true), kFsckErrorsLeft, "F070", "model.safetensors");
}

TEST(FsckSource, HeaderChanged) {
  TinyRun run({.until = Until::kSamples});
  const std::string path = run.source + "/model.safetensors";
  Bytes bytes = Slurp(path);
  const std::string_view text = AsText(bytes);
  const size_t at = text.find("q_proj");
  bytes[at] = 'r';
  run.Rewrite(path, bytes);
  Expect(run.Fsck(), kFsckErrorsLeft, "F070", "model.safetensors");
}

TEST(FsckSource, Truncated) {
  TinyRun run({.until = Until::kSamples});
  const std::string path = run.source + "/model.safetensors";
  const Bytes bytes = Slurp(path);
  run.Rewrite(path, ByteSpan(bytes).first(bytes.size() - 2));
  Expect(run.Fsck(), kFsckErrorsLeft, "F071", "model.safetensors");
}

TEST(FsckSource, GoneAndSidecarChanged) {
  TinyRun run({.until = Until::kSamples});
  Spill(run.source + "/config.json", AsBytes("{}"));
  Expect(run.Fsck(), kFsckErrorsLeft, "F070", "config.json");
  run.Delete(run.source + "/model.safetensors");
  Expect(run.Fsck(), kFsckErrorsLeft, "F070", "model.safetensors");
}

TEST(FsckSource, AFinishedJobOnlyWarns) {
  TinyRun run;
  run.Delete(run.source + "/model.safetensors");
  Expect(run.Fsck(true), 0, "F070", "model.safetensors");
}

// ---- output ----

TEST(FsckOutput, FlippedByte) {
  TinyRun run;
  const std::vector<std::string> names = *run.fs.List(run.out);
  for (const std::string& name : names) {
    const std::string path = run.out + "/" + name;
    const Bytes sound = Slurp(path);
    Bytes damaged = sound;
    damaged[damaged.size() / 2] ^= 4;
    run.Rewrite(path, damaged);
    const FsckReport r = run.Fsck(true);
    EXPECT_EQ(r.exit_status, kFsckErrorsLeft) << name << "\n" << Text(r);
    EXPECT_TRUE(Has(r, name == "SHA256SUMS" ? "F081" : "F080", name)) << name << "\n" << Text(r);
    run.Rewrite(path, sound);
  }
  EXPECT_EQ(run.Fsck(true).exit_status, 0);
}

TEST(FsckOutput, ShortOrMissingFileIsFoundWithoutDeep) {
  TinyRun run;
  const std::vector<std::string> names = *run.fs.List(run.out);
  const auto shard = std::find_if(names.begin(), names.end(), [](const std::string& n) { return n.ends_with(".safetensors"); });
  ASSERT_NE(shard, names.end());
  const Bytes sound = Slurp(run.out + "/" + *shard);
  run.Rewrite(run.out + "/" + *shard, ByteSpan(sound).first(sound.size() / 2));
  Expect(run.Fsck(), kFsckErrorsLeft, "F080", *shard);
  run.Delete(run.out + "/" + *shard);
  Expect(run.Fsck(), kFsckErrorsLeft, "F080", *shard);
}

TEST(FsckOutput, Gone) {
  TinyRun run;
  ASSERT_TRUE(run.fs.RemoveTree(run.out).ok());
  Expect(run.Fsck(), kFsckErrorsLeft, "F081", run.out);
}

// ---- leftovers ----

TEST(FsckLeftovers, StrayTemporaryFile) {
  TinyRun run;
  ASSERT_TRUE(run.fs.MakeDirs(run.dir + "/tmp/0123").ok());
  Spill(run.dir + "/tmp/0123/abc", AsBytes("left behind"));
  Expect(run.Fsck(), 0, "F090", "tmp/0123");
}

TEST(FsckLeftovers, OldStaging) {
  TinyRun run;
  RunState state(run.fs, run.layout);
  ASSERT_TRUE(state.Refresh().ok());
  const auto prefix = StagingPrefix(run.fs, run.layout, state.job());
  ASSERT_TRUE(prefix.ok());
  const std::string staging = DirName(run.out) + "/" + *prefix + "7";
  ASSERT_TRUE(run.fs.MakeDirs(staging).ok());
  Spill(staging + "/x", AsBytes("y"));
  Expect(run.Fsck(), 0, "F090", BaseName(staging));
}

// ---- the program ----

struct Output {
  int exit_status = -1;
  std::string text;
};

Output RunProgram(const std::string& arguments) {
  FILE* pipe = popen((std::string(HOLDFAST_BIN_DIR) + "/fsck.holdfast " + arguments + " 2>&1").c_str(), "r");
  HOLDFAST_CHECK(pipe != nullptr);
  Output out;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) out.text.append(buffer, n);
  out.exit_status = WEXITSTATUS(pclose(pipe));
  return out;
}

TEST(FsckProgram, Help) {
  const Output out = RunProgram("--help");
  EXPECT_EQ(out.exit_status, 0);
  EXPECT_THAT(out.text, ::testing::HasSubstr("EXIT STATUS"));
}

TEST(FsckProgram, WrongUsage) {
  for (const char* arguments : {"", "a b", "--nonsense x", "-j 0 x", "-j x y"}) {
    EXPECT_EQ(RunProgram(arguments).exit_status, kFsckUsage) << arguments;
  }
}

TEST(FsckProgram, ExitStatusAndJson) {
  TinyRun run;
  EXPECT_EQ(RunProgram(run.dir + "/").exit_status, 0);
  EXPECT_EQ(RunProgram("--deep --threads=2 " + run.dir).exit_status, 0);
  EXPECT_EQ(RunProgram(run.dir + "/nothing").exit_status, kFsckOperational);
  run.Delete(run.SlotPath("stage.00", 3));
  const Output out = RunProgram("--json " + run.dir);
  EXPECT_EQ(out.exit_status, kLostAndErrors);
  const auto json = ParseJson(out.text, "output");
  ASSERT_TRUE(json.ok()) << out.text;
  EXPECT_EQ((*json)["exit_status"], kLostAndErrors);
  EXPECT_THAT(RunProgram(run.dir).text, ::testing::HasSubstr("F010 GAP error: log/stage.00/00000003.seg"));
}

// ---- the register ----

TEST(FsckRegister, DocsAndCodesAgree) {
  const Bytes page = Slurp(std::string(HOLDFAST_SOURCE_DIR) + "/docs/fsck.md");
  const std::string text(AsText(page));
  size_t rows = 0;
  for (const std::string& code : FsckCodes()) {
    EXPECT_NE(text.find("| " + code + " | " + FsckCodeName(code) + " | "), std::string::npos) << code << " has no row in docs/fsck.md";
  }
  const std::string register_only = text.substr(0, text.find("\n## ", text.find("| F000 | ")));   // remedies have a table of their own
  for (size_t at = register_only.find("\n| F"); at != std::string::npos; at = register_only.find("\n| F", at + 1)) ++rows;
  EXPECT_EQ(rows, FsckCodes().size());
}

}  // namespace
}  // namespace holdfast::testing
