// SPDX-License-Identifier: Apache-2.0
//
// gc: what goes, what stays, what the ledger says about it, and that it may die anywhere.
#include "fsck/gc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/fsck/mending.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

GcOptions Now() {
  GcOptions o;
  o.threads = 2;
  o.watch_ms = 0;
  o.orphan_age_ms = 0;
  return o;
}

GcReport Gc(TinyRun& run, const GcOptions& options = Now()) {
  RealClock clock;
  const auto r = RunGc(run.fs, clock, run.dir, options);
  EXPECT_TRUE(r.ok()) << (r.ok() ? "" : r.error().message);
  return r.ok() ? *r : GcReport{};
}

std::set<std::string> CutsOf(TinyRun& run) {
  RunState state(run.fs, run.layout);
  EXPECT_TRUE(state.Refresh().ok());
  std::set<std::string> cuts;
  for (uint32_t s = 0; s < state.job().samples; ++s) {
    const SampleRecord* r = state.Sample(s, 0);
    for (const PackManifest& m : r != nullptr && r->output ? r->output->packs : std::vector<PackManifest>()) cuts.insert(run.layout.Pack(m.root));
  }
  return cuts;
}

TEST(Gc, OfADoneJobAllPacksGoAndFsckIsContent) {
  TinyRun run;
  const size_t packs = run.PackFiles().size();
  ASSERT_GT(packs, 0u);
  const GcReport r = Gc(run);
  ASSERT_EQ(r.jobs.size(), 1u);
  EXPECT_EQ(r.jobs[0].state, "done");
  EXPECT_EQ(r.jobs[0].packs.files + r.jobs[0].cuts.files, packs);
  EXPECT_GT(r.total().bytes, 0u);
  EXPECT_TRUE(run.PackFiles().empty());
  const FsckReport after = run.Fsck(true);
  EXPECT_EQ(after.exit_status, 0) << Text(after);
  EXPECT_TRUE(Has(after, "F050")) << "a note";
  EXPECT_TRUE(Folds(run));
}

TEST(Gc, ASecondOneFindsNothingToDo) {
  TinyRun run;
  Gc(run);
  const auto after_first = Tree(run);
  const GcReport r = Gc(run);
  EXPECT_EQ(r.total().files, 0u) << GcReportToText(false, r);
  EXPECT_EQ(Tree(run), after_first) << "not even a slot is written";
}

TEST(Gc, DryRunSaysTheSameAndDoesNothing) {
  TinyRun run;
  const auto before = Tree(run);
  GcOptions o = Now();
  o.dry_run = true;
  const GcTally would = Gc(run, o).total();
  EXPECT_EQ(Tree(run), before);
  const GcTally did = Gc(run).total();
  EXPECT_EQ(would.files, did.files);
  EXPECT_EQ(would.bytes, did.bytes);
}

TEST(Gc, OfAnOpenJobOnlyCutsGoThatASealedStageHasConsumed) {
  TinyRun run({.until = Until::kSealed});
  const std::set<std::string> cuts = CutsOf(run);
  const size_t packs = run.PackFiles().size();
  const GcReport r = Gc(run);
  EXPECT_EQ(r.jobs[0].state, "open");
  EXPECT_EQ(r.jobs[0].cuts.files, cuts.size());
  EXPECT_EQ(r.total().files, cuts.size());
  EXPECT_THAT(r.jobs[0].kept, HasSubstr("neither done nor cancelled"));
  EXPECT_THAT(r.jobs[0].kept, HasSubstr("jobctl resume"));
  EXPECT_EQ(run.PackFiles().size(), packs - cuts.size());
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
}

TEST(Gc, BeforeTheStageBehindIsSealedEveryCutStays) {
  TinyRun run({.until = Until::kEvicted});
  EXPECT_EQ(Gc(run).total().files, 0u);
}

// ---- samples that are left out ----

std::set<std::string> PacksOf(const std::vector<PackManifest>& packs, TinyRun& run) {
  std::set<std::string> paths;
  for (const PackManifest& m : packs) paths.insert(run.layout.Pack(m.root));
  return paths;
}

// What the layers that count are in.
std::set<std::string> LayersOf(TinyRun& run) {
  RunState state(run.fs, run.layout);
  EXPECT_TRUE(state.Refresh().ok());
  std::set<std::string> paths;
  for (uint32_t unit = 0; unit < 4; ++unit) {
    const LayerRecord* e = state.Layer(unit);
    EXPECT_NE(e, nullptr) << unit;
    if (e != nullptr) paths.merge(PacksOf(e->packs, run));
  }
  return paths;
}

std::set<std::string> Files(TinyRun& run) {
  const auto files = run.PackFiles();
  return {files.begin(), files.end()};
}

TEST(GcOmission, LayersThatWereMadeAgainAndTheCutsOfTheSampleGo) {
  TinyRun run({.until = Until::kSealed, .omit_sample = 1, .omit_late = true});
  const std::set<std::string> cuts = CutsOf(run), before = Files(run), needed = LayersOf(run);
  ASSERT_EQ(cuts.size(), 3u) << "that of the sample which is left out, too";
  ASSERT_EQ(before.size(), needed.size() + cuts.size() + 1) << "layer 0 was made twice";
  const GcReport r = Gc(run);
  EXPECT_EQ(r.jobs[0].state, "open");
  EXPECT_EQ(r.jobs[0].cuts.files, 3u);
  EXPECT_EQ(r.jobs[0].packs.files, 1u);
  EXPECT_EQ(Files(run), needed);
  EXPECT_EQ(Gc(run).total().files, 0u);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
}

TEST(GcOmission, OfADoneJobAllPacksGo) {
  TinyRun run({.omit_sample = 1, .omit_late = true});
  const size_t packs = run.PackFiles().size();
  const GcReport r = Gc(run);
  EXPECT_EQ(r.total().files, packs);
  EXPECT_TRUE(run.PackFiles().empty());
  EXPECT_EQ(Gc(run).total().files, 0u);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
}

// Nothing stands yet in the place of what the omission made worthless, and the stage behind might still begin at the cut.
TEST(GcOmission, BeforeTheStagesAreSealedAgainEverythingStays) {
  TinyRun run({.until = Until::kSamples, .omit_sample = 1, .omit_late = true});
  const auto before = Files(run);
  EXPECT_EQ(Gc(run).total().files, 0u);
  EXPECT_EQ(Files(run), before);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
}

// The omission is lost with its slot after a gc relied on it: the sample is in again, and what is missing for that is made again.
TEST(GcOmission, AnOmissionThatIsLostAfterwardsOpensWhatItTook) {
  TinyRun run({.until = Until::kSealed, .omit_sample = 1, .omit_late = true});
  ASSERT_GT(Gc(run).jobs[0].packs.files, 0u);
  run.Rewrite(run.SlotPath("job", run.SlotCount("job") - 1), Bytes(100));
  const RepairReport r = Repair(run);
  EXPECT_NE(r.exit_status & kFsckReopened, 0) << Text(r);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
  RunState state(run.fs, run.layout);
  ASSERT_TRUE(state.Refresh().ok());
  EXPECT_TRUE(state.omitted().empty());
  EXPECT_EQ(state.Layer(0), nullptr) << "its first pack is gone, and the second was made without the sample";
  EXPECT_EQ(state.Sample(1, 0), nullptr) << "its cut is gone";
  EXPECT_NE(state.Sample(0, 0), nullptr);
}

TEST(FsckOmission, ALostPackOfALayerThatCountsIsFoundAlthoughItWasMadeTwice) {
  TinyRun run({.until = Until::kSealed, .omit_sample = 1, .omit_late = true});
  RunState state(run.fs, run.layout);
  ASSERT_TRUE(state.Refresh().ok());
  for (const std::string& path : PacksOf(state.Layer(0)->packs, run)) run.Delete(path);
  const FsckReport r = run.Fsck();
  EXPECT_NE(r.exit_status, 0) << Text(r);
  EXPECT_TRUE(Has(r, "F050"));
  EXPECT_NE(Repair(run).exit_status & kFsckReopened, 0);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
}

TEST(FsckOmission, TheLayerThatCountsIsJudgedNotTheOneBeforeIt) {
  uint32_t made = 0;
  TinyRun run({.until = Until::kSealed, .edit_layer = [&](LayerRecord* e) {
    if (e->unit == 0 && ++made == 2) e->tensors.pop_back();
  }, .omit_sample = 1, .omit_late = true});
  ASSERT_EQ(made, 2u);
  EXPECT_TRUE(Has(run.Fsck(), "F060")) << Text(run.Fsck());
}

TEST(FsckOmission, ALostCutOfASampleThatIsLeftOutIsANote) {
  TinyRun run({.until = Until::kSamples, .omit_sample = 1});
  RunState state(run.fs, run.layout);
  ASSERT_TRUE(state.Refresh().ok());
  for (const std::string& path : PacksOf(state.Sample(1, 0)->output->packs, run)) run.Delete(path);
  const FsckReport r = run.Fsck();
  EXPECT_EQ(r.exit_status, 0) << Text(r);
  EXPECT_TRUE(Has(r, "F050"));
}

// ---- what stays ----

// A later plan could join the open stage with the one before it.
TEST(Gc, ACutStaysWhileAnythingBehindItIsOpen) {
  TinyRun run({.until = Until::kSealed});
  const size_t packs = run.PackFiles().size();
  VoidRecord v;
  v.target = "key";
  v.key = RecordKey{RecordClass::kSeal, 1, 0, 0, 0}.Encode();
  run.AppendSlot("stage.01", 1, {MakeControl({RecordClass::kVoid, 1, 0, 1, 0}, v.ToJson())});
  EXPECT_EQ(Gc(run).total().files, 0u);
  EXPECT_EQ(run.PackFiles().size(), packs);
}

TEST(Gc, PrivateFilesAndPacksOfNobodyStayWhileAJobIsOpen) {
  TinyRun run({.until = Until::kSealed});
  Gc(run);
  const Bytes junk(100, 1);
  const std::string pack = run.layout.Pack(Sha256(junk)), stray = run.layout.TmpDir(Nonce::Random());
  ASSERT_TRUE(run.fs.MakeDirs(DirName(pack)).ok() && run.fs.MakeDirs(stray).ok());
  Spill(pack, junk);
  Spill(stray + "/half", junk);
  EXPECT_EQ(Gc(run).total().files, 0u);
}

TEST(Gc, OrphansStagingAndPrivateFilesOfADoneJobGo) {
  TinyRun run;
  const Bytes junk(100, 1);
  const std::string pack = run.layout.Pack(Sha256(junk)), stray = run.layout.TmpDir(Nonce::Random());
  ASSERT_TRUE(run.fs.MakeDirs(DirName(pack)).ok() && run.fs.MakeDirs(stray).ok());
  Spill(pack, junk);
  Spill(stray + "/half", junk);
  const GcReport r = Gc(run);
  EXPECT_EQ(r.jobs[0].orphans.files, 1u);
  EXPECT_EQ(r.jobs[0].tmp.files, 1u);
  EXPECT_FALSE(*run.fs.Exists(stray));
  EXPECT_FALSE(*run.fs.Exists(pack));
  TinyRun young;
  const std::string fresh = young.layout.TmpDir(Nonce::Random());
  ASSERT_TRUE(young.fs.MakeDirs(fresh).ok());
  GcOptions o = Now();
  o.orphan_age_ms = 3'600'000;
  EXPECT_EQ(Gc(young, o).jobs[0].tmp.files, 0u);
  EXPECT_TRUE(*young.fs.Exists(fresh));
}

TEST(Gc, AnOutputWithOneOtherByteKeepsItsPacks) {
  TinyRun run;
  const auto names = run.fs.List(run.out);
  for (const std::string& name : *names) {
    if (name.ends_with(".safetensors")) {
      Flip(run, run.out + "/" + name, 5000);
      break;
    }
  }
  const auto before = Tree(run);
  const GcReport r = Gc(run);
  EXPECT_TRUE(r.refused());
  EXPECT_THAT(r.jobs[0].kept, HasSubstr("jobctl fsck"));
  EXPECT_EQ(Tree(run), before);
}

TEST(Gc, WithFindingsNothingGoes) {
  TinyRun run;
  Flip(run, run.SlotPath("stage.00", 2), 9000);
  const auto before = Tree(run);
  const GcReport r = Gc(run);
  EXPECT_TRUE(r.refused());
  EXPECT_THAT(r.jobs[0].kept, HasSubstr("jobctl fsck"));
  EXPECT_EQ(Tree(run), before);
}

TEST(Gc, NeitherARunNorARoot) {
  TinyRun run;
  RealClock clock;
  EXPECT_EQ(RunGc(run.fs, clock, run.source, Now()).code(), ErrorCode::kInvalidArgument);
}

// What the output is written from again is gone: the work on it is opened, by the void of the records that lost their packs.
TEST(Gc, ALostOutputOfACollectedJobIsMadeAgain) {
  TinyRun run;
  Gc(run);
  ASSERT_TRUE(run.fs.RemoveTree(run.out).ok());
  ASSERT_TRUE(Has(run.Fsck(), "F081"));
  const RepairReport r = Repair(run);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckReopened) << Text(r);
  RunState state(run.fs, run.layout);
  ASSERT_TRUE(state.Refresh().ok());
  EXPECT_FALSE(state.done() || state.published());
  for (uint32_t unit = 0; unit < 4; ++unit) EXPECT_EQ(state.Layer(unit), nullptr) << unit;
  for (const auto& [id, stage] : state.stages()) EXPECT_FALSE(stage.seal);
  EXPECT_NE(state.Sample(0, 1), nullptr) << "samples need no packs any more";
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
}

TEST(Gc, ASampleWhoseCutIsGoneIsComputedFromFurtherBack) {
  TinyRun run({.until = Until::kSealed, .edit_sample = [](uint32_t stage, SampleRecord* r) {
    if (stage == 1 && r->sample == 1) r->input.bytes[0] ^= 1;
  }});
  for (const std::string& cut : CutsOf(run)) run.Delete(cut);   // as a gc had done before the wrong sample was noticed
  const RepairReport r = Repair(run);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckReopened) << Text(r);
  EXPECT_EQ(run.Fsck().exit_status, 0) << Text(run.Fsck());
  RunState state(run.fs, run.layout);
  ASSERT_TRUE(state.Refresh().ok());
  EXPECT_EQ(state.Sample(1, 0), nullptr) << "its cut has to be made again";
  EXPECT_NE(state.Sample(0, 0), nullptr);
}

TEST(Gc, QuarantinesGoOnRequestOnly) {
  TinyRun run;
  Spill(run.layout.StreamDir("stage.00") + "/notes.txt", AsBytes(std::string_view("mine")));
  const std::string id = IdOf(Repair(run));
  ASSERT_FALSE(id.empty());
  Gc(run);
  EXPECT_TRUE(*run.fs.Exists(run.layout.QuarantineDir() + "/" + id));
  GcOptions o = Now();
  o.quarantine = "20260101T000000Z-00000000";
  RealClock clock;
  EXPECT_EQ(RunGc(run.fs, clock, run.dir, o).code(), ErrorCode::kNotFound);
  o.quarantine = id;
  EXPECT_GT(Gc(run, o).jobs[0].quarantine.files, 0u);
  EXPECT_FALSE(*run.fs.Exists(run.layout.QuarantineDir() + "/" + id));
  EXPECT_EQ(run.Fsck(true).exit_status, 0);
  EXPECT_EQ(Undo(run, id).exit_status, kFsckUsage);
}

TEST(Gc, TheSlotsStay) {
  TinyRun run;
  std::map<std::string, uint32_t> before;
  for (const std::string stream : {"stage.00", "stage.01", "merge"}) before[stream] = run.SlotCount(stream);
  const uint32_t job = run.SlotCount("job");
  Gc(run);
  for (const auto& [stream, count] : before) EXPECT_EQ(run.SlotCount(stream), count) << stream;
  EXPECT_EQ(run.SlotCount("job"), job + 2) << "the claim with the X record, and the release";
}

}  // namespace
}  // namespace holdfast::testing
