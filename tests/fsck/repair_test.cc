// SPDX-License-Identifier: Apache-2.0
//
// Repair: every kind of damage that has a remedy is made, found, mended and taken back. After a repair fsck is content and the fold can read
// the log; after its undoing every byte is what it was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "ledger/base/process_identity.h"
#include "tests/fsck/mending.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

// The whole way: found, mended with these bits, content afterwards, foldable, taken back byte for byte, found again.
void ExpectMended(TinyRun& run, const std::string& code, int exit_status, bool deep = false) {
  const FsckReport found = run.Fsck(deep);
  ASSERT_TRUE(Has(found, code)) << Text(found);
  const auto before = Tree(run);
  const RepairReport r = Repair(run, deep);
  EXPECT_EQ(r.exit_status, exit_status) << Text(r);
  EXPECT_EQ(run.Fsck(deep).exit_status, 0) << Text(r);
  EXPECT_TRUE(Folds(run));
  EXPECT_NE(Tree(run), before);
  ASSERT_FALSE(IdOf(r).empty());
  const UndoReport undone = Undo(run, IdOf(r));
  EXPECT_EQ(undone.exit_status, 0) << ::testing::PrintToString(undone.lines);
  EXPECT_EQ(Tree(run), before) << "after the undo";
  EXPECT_TRUE(Has(run.Fsck(deep), code));
}

constexpr int kMended = kFsckCorrected | kFsckReopened, kLost = kFsckDataLost;

// ---- slots ----

TEST(RepairSlots, F010Gap) {
  TinyRun run({.until = Until::kSamples});
  run.Delete(run.SlotPath("stage.00", 2));
  ExpectMended(run, "F010", kMended | kLost);
}

TEST(RepairSlots, F010TwoInARow) {
  TinyRun run({.until = Until::kSamples});
  run.Delete(run.SlotPath("stage.00", 1));
  run.Delete(run.SlotPath("stage.00", 2));
  ExpectMended(run, "F010", kMended | kLost);
}

TEST(RepairSlots, F010TheClaimItself) {
  TinyRun run({.until = Until::kSamples});
  run.Delete(run.SlotPath("stage.00", 0));
  ExpectMended(run, "F010", kMended | kLost);
}

TEST(RepairSlots, F011Short) {
  TinyRun run({.until = Until::kSamples});
  const std::string path = run.SlotPath("stage.01", 1);
  Bytes bytes = Slurp(path);
  bytes.resize(bytes.size() / 2);
  run.Rewrite(path, bytes);
  ExpectMended(run, "F011", kMended | kLost);
}

TEST(RepairSlots, F011EmptyLastSlot) {
  TinyRun run({.until = Until::kSamples});
  run.Rewrite(run.SlotPath("stage.00", run.SlotCount("stage.00") - 1), Bytes{});
  ExpectMended(run, "F011", kMended | kLost);
}

TEST(RepairSlots, F012BitRot) {
  TinyRun run({.until = Until::kSamples});
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  ExpectMended(run, "F012", kMended | kLost);
}

TEST(RepairSlots, F012InAFinishedJobOpensNothing) {
  TinyRun run;
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  ExpectMended(run, "F012", kFsckCorrected | kLost);
}

TEST(RepairSlots, F012EveryStreamOfAFinishedJob) {
  for (const std::string stream : {"stage.00", "stage.01", "merge", "job"}) {
    TinyRun probe;
    for (uint32_t seq = stream == "job" ? 1 : 0; seq < probe.SlotCount(stream); ++seq) {
      TinyRun run;
      Flip(run, run.SlotPath(stream, seq), 9000);
      const RepairReport r = Repair(run);
      EXPECT_EQ(r.exit_status & ~kFsckReopened, kFsckCorrected | kLost) << stream << " " << seq << "\n" << Text(r);
      EXPECT_EQ(run.Fsck().exit_status, 0) << stream << " " << seq << "\n" << Text(r);
      EXPECT_TRUE(Folds(run));
    }
  }
}

TEST(RepairSlots, F013Misplaced) {
  TinyRun run({.until = Until::kSamples});
  run.Rewrite(run.SlotPath("stage.00", 3), Slurp(run.SlotPath("stage.01", 2)));
  ExpectMended(run, "F013", kMended | kLost);
}

TEST(RepairSlots, F014Chain) {
  TinyRun run({.until = Until::kSamples}), other({.until = Until::kSamples});
  // A sound slot of this very place that names another predecessor.
  const Bytes file = Slurp(run.SlotPath("stage.00", 2));
  SegmentTrailer t = *SegmentTrailer::Decode(ByteSpan(file).last(kTrailerBytes));
  t.prev.bytes[0] ^= 1;
  Bytes forged(file.begin(), file.end() - kTrailerBytes);
  const Bytes trailer = t.Encode();
  forged.insert(forged.end(), trailer.begin(), trailer.end());
  run.Rewrite(run.SlotPath("stage.00", 2), forged);
  ExpectMended(run, "F014", kMended | kLost);
}

TEST(RepairSlots, F002TheJobRecordCannotBeMended) {
  TinyRun run({.until = Until::kSamples});
  Flip(run, run.SlotPath("job", 0), 9000);
  const auto before = Tree(run);
  const RepairReport r = Repair(run);
  EXPECT_EQ(r.exit_status, kFsckErrorsLeft | kLost) << Text(r);
  EXPECT_FALSE(r.acted);
  EXPECT_EQ(Tree(run), before);
}

// ---- records, packs, output ----

constexpr RecordKey kLayer0 = {RecordClass::kLayer, 0, 0, 0, 0};

TEST(RepairRecords, F003Foreign) {
  TinyRun run;
  Spill(run.layout.StreamDir("stage.00") + "/notes.txt", AsBytes(std::string_view("mine")));
  ExpectMended(run, "F003", kFsckCorrected);
}

TEST(RepairRecords, F015TheParserDiesOnIt) {
  TinyRun run({.until = Until::kSamples});
  const std::string path = run.SlotPath("stage.01", run.SlotCount("stage.01") - 1);
  Bytes file = Slurp(path);
  SegmentTrailer t = *SegmentTrailer::Decode(ByteSpan(file).last(kTrailerBytes));
  const size_t page = 4096;
  for (size_t at = 2 * page; at + page <= t.env_len; at += page) {
    for (size_t i = at + 16; i < at + 32; ++i) file[i] = 0xff;   // where the nodes of a leaf begin: far behind the file
  }
  t.env_sha256 = Sha256(ByteSpan(file).first(t.env_len));
  const Bytes trailer = t.Encode();
  std::copy(trailer.begin(), trailer.end(), file.end() - kTrailerBytes);
  run.Rewrite(path, file);
  EXPECT_EQ(run.Fsck().exit_status, kFsckErrorsLeft | kLost);
  ExpectMended(run, "F015", kMended | kLost);
}

TEST(RepairRecords, F020OfOneRecord) {
  TinyRun run({.until = Until::kSamples});
  run.AppendSlot("stage.00", 1, {MakeControl(kLayer0, Json{{"unit", "none"}})});
  ExpectMended(run, "F020", kMended);
}

TEST(RepairRecords, F021OfAWholeSlot) {
  TinyRun run({.until = Until::kSamples});
  Record r = MakeControl(kLayer0, Json::object());
  r.epoch = 1;
  const RecordKey other = {RecordClass::kSeal, 0, 0, 0, 0};
  run.AppendRawSlot("stage.00", 1, {{other.Encode(), EncodeRecordValue(r)}}, 1);
  ExpectMended(run, "F021", kMended | kLost);
}

TEST(RepairRecords, F041WhatWasMadeFromAWrongSampleGoesWithIt) {
  TinyRun run({.until = Until::kSamples, .edit_sample = [](uint32_t stage, SampleRecord* r) {
    if (stage == 0 && r->sample == 1) r->amax[0] = INFINITY;
  }});
  const FsckReport found = run.Fsck();
  ASSERT_EQ(found.plans.size(), 1u);
  EXPECT_EQ(found.plans[0].strikes.size(), 2u) << "the sample, and the same one in the stage behind";
  ExpectMended(run, "F041", kMended);
}

TEST(RepairRecords, F043SealWithoutCoverage) {
  TinyRun run({.until = Until::kSealed, .forget_sample = 1});
  ExpectMended(run, "F043", kMended);
}

TEST(RepairRecords, F044AnotherInput) {
  TinyRun run({.until = Until::kSamples, .edit_sample = [](uint32_t stage, SampleRecord* r) {
    if (stage == 1 && r->sample == 1) r->input.bytes[0] ^= 1;
  }});
  ExpectMended(run, "F044", kMended);
}

// The first pack whose damage opens work again.
void DamagePack(TinyRun& run, bool deep, const std::function<void(const std::string&)>& damage) {
  for (const std::string& path : run.PackFiles()) {
    const Bytes sound = Slurp(path);
    damage(path);
    const FsckReport r = run.Fsck(deep);
    if (!r.plans.empty() && r.plans[0].reopens) return;
    run.Rewrite(path, sound);
  }
}

TEST(RepairPacks, F050Missing) {
  TinyRun run({.until = Until::kSealed});
  DamagePack(run, false, [&](const std::string& path) { run.Delete(path); });
  ExpectMended(run, "F050", kMended);
}

TEST(RepairPacks, F050Short) {
  TinyRun run({.until = Until::kSealed});
  DamagePack(run, false, [&](const std::string& path) { run.Rewrite(path, Bytes(100)); });
  ExpectMended(run, "F050", kMended);
}

TEST(RepairPacks, F051Rot) {
  TinyRun run({.until = Until::kSealed});
  Flip(run, run.PackFiles().back(), 9000);
  ASSERT_TRUE(Has(run.Fsck(true), "F051"));
  const RepairReport r = Repair(run, true);
  EXPECT_EQ(r.exit_status & (kFsckErrorsLeft | kFsckCorrected), kFsckCorrected) << Text(r);
  EXPECT_EQ(run.Fsck(true).exit_status, 0);
}

TEST(RepairPacks, F052Misnamed) {
  TinyRun run({.until = Until::kSealed});
  Spill(DirName(run.PackFiles()[0]) + "/notes.txt", AsBytes(std::string_view("mine")));
  ExpectMended(run, "F052", kFsckCorrected);
}

TEST(RepairLayers, F060TensorMissing) {
  TinyRun run({.until = Until::kEvicted, .edit_layer = [](LayerRecord* e) {
    if (e->unit == 0) e->tensors.pop_back();
  }});
  ExpectMended(run, "F060", kMended);
}

TEST(RepairLayers, F061AnotherAmaxAndTheOutputGoesWithIt) {
  TinyRun run({.edit_layer = [](LayerRecord* e) {
    if (e->unit == 1) e->input_amax[0] ^= 1;
  }});
  ExpectMended(run, "F061", kMended);
}

TEST(RepairOutput, F080Short) {
  TinyRun run;
  const auto names = run.fs.List(run.out);
  for (const std::string& name : *names) {
    if (name.ends_with(".safetensors")) run.Rewrite(run.out + "/" + name, Bytes(10));
  }
  ExpectMended(run, "F080", kMended);
}

TEST(RepairOutput, F081Gone) {
  TinyRun run;
  ASSERT_TRUE(run.fs.RemoveTree(run.out).ok());
  ExpectMended(run, "F081", kMended);
}

TEST(RepairOutput, F081AnotherManifest) {
  TinyRun run;
  run.Rewrite(run.out + "/SHA256SUMS", AsBytes(std::string_view("nothing\n")));
  ExpectMended(run, "F081", kMended);
}

TEST(RepairLeftovers, F090OldPrivateFilesAreMovedYoungOnesStay) {
  TinyRun run;
  const std::string stray = run.layout.TmpDir(Nonce::Random());
  ASSERT_TRUE(run.fs.MakeDirs(stray).ok());
  Spill(stray + "/half", AsBytes(std::string_view("half")));
  RealClock clock;
  RepairOptions o = Options();
  o.orphan_age_ms = 3'600'000;
  const RepairReport young = RunRepair(run.fs, clock, run.dir, o);
  EXPECT_EQ(young.exit_status, 0);
  EXPECT_FALSE(young.acted);
  EXPECT_TRUE(run.fs.Exists(stray).value());
  EXPECT_EQ(Repair(run).exit_status, 0);
  EXPECT_FALSE(run.fs.Exists(stray).value());
  EXPECT_FALSE(Has(run.Fsck(), "F090"));
}

// ---- F062, F093: found, not mended ----

TEST(FsckReproduce, F062) {
  TinyRun sound;
  FsckOptions o;
  o.reproduce = 4;
  const FsckReport clean = RunFsck(sound.fs, sound.dir, o);
  EXPECT_EQ(clean.exit_status, 0) << Text(clean);
  EXPECT_EQ(clean.reproduced, 4u);
  TinyRun wrong({.until = Until::kSealed, .edit_layer = [](LayerRecord* e) {
    if (e->unit == 1) e->tensors[0].digest.bytes[0] ^= 1;
  }});
  const FsckReport r = RunFsck(wrong.fs, wrong.dir, o);
  EXPECT_EQ(r.exit_status, kFsckErrorsLeft) << Text(r);
  EXPECT_TRUE(Has(r, "F062")) << Text(r);
}

TEST(FsckEnvironment, F093) {
  TinyRun run;
  const auto judge = [&](const std::string& options) {
    FsckOptions o;
    o.mount_table = "21 1 8:1 / / rw,relatime - ext4 /dev/sda rw\n99 21 0:50 / " + DirName(run.dir) + " rw,noatime shared:7 - nfs4 box:/export rw,vers=4.2," + options + "\n";
    return RunFsck(run.fs, run.dir, o);
  };
  EXPECT_TRUE(judge("hard,lookupcache=pos").findings.empty());
  EXPECT_EQ(judge("hard").exit_status, 0);
  EXPECT_TRUE(Has(judge("hard"), "F093")) << "a remark about cached misses";
  EXPECT_EQ(judge("soft,lookupcache=pos").exit_status, kFsckErrorsLeft);
  EXPECT_EQ(judge("hard,nocto,lookupcache=pos").exit_status, kFsckErrorsLeft);
}

TEST(FsckEnvironment, F093OneNameForTwoClients) {
  TinyRun run;
  FsckOptions o;
  o.mount_table = "99 21 0:50 / " + DirName(run.dir) + " rw shared:7 - nfs4 box:/export rw,vers=4.2,hard,lookupcache=pos\n";
  o.host_name = "localhost";
  EXPECT_TRUE(RunFsck(run.fs, run.dir, o).findings.empty()) << "no NFS client that could be asked";
  o.nfs4_unique_id = "";
  const FsckReport r = RunFsck(run.fs, run.dir, o);
  EXPECT_EQ(r.exit_status, 0);
  EXPECT_TRUE(Has(r, "F093")) << Text(r);
  o.nfs4_unique_id = "6f1c";
  EXPECT_TRUE(RunFsck(run.fs, run.dir, o).findings.empty());
  o.nfs4_unique_id = "";
  o.host_name = "spark1";
  EXPECT_TRUE(RunFsck(run.fs, run.dir, o).findings.empty());
  o.host_name = "localhost";
  o.mount_table = "";
  EXPECT_TRUE(RunFsck(run.fs, run.dir, o).findings.empty()) << "a local directory";
}

TEST(FsckEnvironment, F093TwoMachinesThatWorkedHereUnderOneName) {
  TinyRun run({.until = Until::kSamples});
  Incarnation other;
  other.node = "test";
  other.nonce = Nonce::Random();
  other.hostname = ThisProcess().hostname;
  other.machine_id = "another machine";
  run.AppendSlot("stage.00", 1, {MakeControl({RecordClass::kIncarnation, 0, 7, 0, 0}, other.ToJson())});
  FsckOptions o;
  EXPECT_FALSE(Has(RunFsck(run.fs, run.dir, o), "F093"));
  o.mount_table = "99 21 0:50 / " + DirName(run.dir) + " rw shared:7 - nfs4 box:/export rw,vers=4.2,hard,lookupcache=pos\n";
  const FsckReport r = RunFsck(run.fs, run.dir, o);
  EXPECT_TRUE(Has(r, "F093")) << Text(r);
  EXPECT_EQ(r.exit_status, 0);
}

TEST(FsckEnvironment, F093AnExportThatForgets) {
  TinyRun run;
  const auto judge = [&](const std::string& table) {
    FsckOptions o;
    o.export_table = table;
    return RunFsck(run.fs, run.dir, o).exit_status;
  };
  EXPECT_EQ(judge("/\t*(rw,sync,wdelay)\n"), 0);
  EXPECT_EQ(judge("/elsewhere\t*(rw,async,wdelay)\n"), 0);
  EXPECT_EQ(judge(DirName(run.dir) + "\t10.0.0.0/24(rw,async,wdelay)\n"), kFsckErrorsLeft);
}

// ---- the rules of repair itself ----

TEST(Repair, DryRunSaysAndDoesNothing) {
  TinyRun run({.until = Until::kSamples});
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  const auto before = Tree(run);
  RealClock clock;
  RepairOptions o = Options();
  std::vector<std::string> lines;
  o.dry_run = true;
  o.on_line = [&](const std::string& line) { lines.push_back(line); };
  const RepairReport r = RunRepair(run.fs, clock, run.dir, o);
  EXPECT_EQ(r.exit_status, kFsckErrorsLeft | kLost);
  EXPECT_THAT(lines, ::testing::Contains(HasSubstr("plan: F012: a tombstone over")));
  EXPECT_EQ(Tree(run), before);
}

TEST(Repair, OfASoundJobChangesNothing) {
  TinyRun run;
  const auto before = Tree(run);
  const RepairReport r = Repair(run, /*deep=*/true);
  EXPECT_EQ(r.exit_status, 0) << Text(r);
  EXPECT_FALSE(r.acted);
  EXPECT_EQ(Tree(run), before);
}

TEST(Repair, RefusesWhileTheOwnerLives) {
  TinyRun run({.until = Until::kSamples, .alive = true});
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  const auto before = Tree(run);
  const RepairReport r = Repair(run);
  EXPECT_EQ(r.exit_status, kFsckErrorsLeft | kLost) << Text(r);
  ASSERT_EQ(r.refusals.size(), 1u);
  EXPECT_THAT(r.refusals[0], HasSubstr("is working on it"));
  EXPECT_THAT(r.refusals[0], HasSubstr("kill -TERM"));
  EXPECT_EQ(Tree(run), before);
}

TEST(Repair, UndoOfAnUnknownIdNamesTheKnownOnes) {
  TinyRun run({.until = Until::kSamples});
  EXPECT_EQ(Undo(run, "20260101T000000Z-00000000").exit_status, kFsckUsage);
  EXPECT_EQ(Undo(run, "../log").exit_status, kFsckUsage);
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  const RepairReport r = Repair(run);
  const UndoReport u = Undo(run, "nonsense");
  EXPECT_EQ(u.exit_status, kFsckUsage);
  ASSERT_FALSE(u.lines.empty());
  EXPECT_THAT(u.lines.back(), HasSubstr(IdOf(r)));
}

TEST(Repair, TwoRepairsAreTakenBackInReverse) {
  TinyRun run({.until = Until::kSamples});
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  const auto first_damage = Tree(run);
  const std::string first = IdOf(Repair(run));
  Flip(run, run.SlotPath("stage.00", 1), 9000);
  const std::string second = IdOf(Repair(run));
  ASSERT_NE(first, second);
  const UndoReport refused = Undo(run, first);
  EXPECT_EQ(refused.exit_status, kFsckErrorsLeft) << ::testing::PrintToString(refused.lines);
  EXPECT_EQ(Undo(run, second).exit_status, 0);
  EXPECT_EQ(Undo(run, first).exit_status, 0);
  const auto now = Tree(run);
  for (const auto& [path, digest] : first_damage) {
    EXPECT_EQ(now.at(path) == digest, path != run.SlotPath("stage.00", 1)) << path;
  }
}

TEST(Repair, UndoTwiceIsOnce) {
  TinyRun run({.until = Until::kSamples});
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  const auto before = Tree(run);
  const std::string id = IdOf(Repair(run));
  EXPECT_EQ(Undo(run, id).exit_status, 0);
  EXPECT_EQ(Undo(run, id).exit_status, 0);
  EXPECT_EQ(Tree(run), before);
}

TEST(Repair, NoUndoAfterSomebodyWentOn) {
  TinyRun run({.until = Until::kSamples});
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  const std::string id = IdOf(Repair(run));
  run.AppendSlot("stage.00", 3, {MakeControl({RecordClass::kClaim, 0, 3, 0, 0}, Claim{3, run.incarnation(), "test", "resume", 1, "test"}.ToJson())});
  const auto before = Tree(run);
  const UndoReport u = Undo(run, id);
  EXPECT_EQ(u.exit_status, kFsckErrorsLeft);
  EXPECT_THAT(u.lines.back(), HasSubstr("written after the repair"));
  EXPECT_EQ(Tree(run), before);
}

// ---- killed anywhere ----

int Program(const std::string& arguments, const std::string& fail) {
  const std::string command = "HOLDFAST_FAIL='" + fail + "' " + std::string(HOLDFAST_BIN_DIR) + "/fsck.holdfast " + arguments + " >/dev/null 2>&1";
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

constexpr int kKilled = 128 + 9;

class KilledRepair : public ::testing::TestWithParam<const char*> {};

std::vector<std::string> Ids(TinyRun& run) {
  const auto names = run.fs.List(run.layout.QuarantineDir());
  return names.ok() ? *names : std::vector<std::string>();
}

// Slots buried in two streams, records struck, a file moved.
void DamageMuch(TinyRun& run) {
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  run.Delete(run.SlotPath("stage.01", 1));
  Spill(run.layout.LogDir() + "/notes.txt", AsBytes(std::string_view("mine")));
}

TEST_P(KilledRepair, TheSameLineAgainGoesOn) {
  TinyRun run({.until = Until::kSealed});
  DamageMuch(run);
  ASSERT_EQ(Program("--repair " + run.dir, GetParam()), kKilled) << "the fail-point was never reached";
  Program("--repair " + run.dir, "");
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
  EXPECT_TRUE(Folds(run));
}

TEST_P(KilledRepair, CanBeTakenBack) {
  TinyRun run({.until = Until::kSealed});
  DamageMuch(run);
  const auto before = Tree(run);
  ASSERT_EQ(Program("--repair " + run.dir, GetParam()), kKilled) << "the fail-point was never reached";
  ASSERT_EQ(Ids(run).size(), 1u);
  const bool said = run.fs.Exists(run.layout.QuarantineDir() + "/" + Ids(run)[0] + "/manifest.json").value();
  EXPECT_EQ(Program("--undo " + Ids(run)[0] + " " + run.dir, ""), said ? 0 : kFsckUsage);
  EXPECT_EQ(Tree(run), before);
}

INSTANTIATE_TEST_SUITE_P(Points, KilledRepair,
                         ::testing::Values("repair.copied", "repair.prepared", "publish.P4@manifest", "repair.manifest", "publish.P4@stage.00", "repair.tombstone",
                                           "repair.tombstone:2", "repair.claimed", "repair.claimed:2", "repair.claimed:3", "repair.moved", "repair.release",
                                           "repair.release:3", "repair.done"));

class KilledUndo : public ::testing::TestWithParam<const char*> {};

TEST_P(KilledUndo, TheSameLineAgainGoesOn) {
  TinyRun run({.until = Until::kSealed});
  DamageMuch(run);
  const auto before = Tree(run);
  Program("--repair " + run.dir, "");
  ASSERT_EQ(Ids(run).size(), 1u);
  const std::string undo = "--undo " + Ids(run)[0] + " " + run.dir;
  ASSERT_EQ(Program(undo, GetParam()), kKilled) << "the fail-point was never reached";
  EXPECT_EQ(Program(undo, ""), 0);
  EXPECT_EQ(Tree(run), before);
}

INSTANTIATE_TEST_SUITE_P(Points, KilledUndo,
                         ::testing::Values("undo.move", "undo.slot", "undo.slot:3", "undo.tombstone", "undo.tombstone:2", "publish.P4@UNDONE"));

}  // namespace
}  // namespace holdfast::testing
