// SPDX-License-Identifier: Apache-2.0
//
// --salvage: of a slot that fails as a whole the records that hold by their own checksums are said again, and nothing else is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "fsck/salvage.h"
#include "ledger/pack/pack.h"
#include "tests/fsck/mending.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;

RepairOptions Salvaging() {
  RepairOptions o = Options();
  o.check.salvage = true;
  return o;
}

RepairReport RepairAndSalvage(TinyRun& run, RepairOptions options = Salvaging()) {
  RealClock clock;
  return RunRepair(run.fs, clock, run.dir, options);
}

// Where a record's value begins in its slot's file: its header is found by magic, version and class.
size_t ValueAt(ByteSpan file, RecordClass cls, size_t number = 0) {
  for (size_t at = 0; at + kRecordHeaderBytes <= file.size(); ++at) {
    if (file[at] == 0x48 && file[at + 1] == 0x46 && file[at + 2] == 1 && file[at + 3] == static_cast<uint8_t>(cls) && file[at + 5] == 0 && number-- == 0) return at;
  }
  ADD_FAILURE() << "no such record";
  return 0;
}

void FlipValue(TinyRun& run, const std::string& path, RecordClass cls, size_t number = 0) {
  Flip(run, path, ValueAt(Slurp(path), cls, number) + kRecordHeaderBytes + 3);
}

// A byte that no page of LMDB uses: the padding of the second meta page.
constexpr size_t kPadding = 8000;

std::string Fold(TinyRun& run) {
  RunState state(run.fs, run.layout);
  const Status read = state.Refresh();
  if (!read.ok()) return read.error().message;
  std::string text;
  for (uint32_t sample = 0; sample < state.job().samples; ++sample) {
    for (uint32_t layer = 0; layer < 2; ++layer) text += state.Sample(sample, layer) == nullptr ? "-" : "S";
  }
  for (uint32_t unit = 0; unit < 4; ++unit) text += state.Layer(unit) == nullptr ? "-" : "E";
  for (const auto& [id, stage] : state.stages()) text += stage.seal ? "Z" : "-";
  for (const auto& [sample, omit] : state.omitted()) text += "O" + std::to_string(sample) + "(" + omit.why + ")";
  return text + (state.published() ? "P" : "-") + (state.done() ? "D" : "-");
}

TEST(Salvage, ASampleWhoseSlotHasABadByteElsewhereIsNotComputedAgain) {
  TinyRun run({.until = Until::kSealed});
  const std::string whole = Fold(run);
  Flip(run, run.SlotPath("stage.00", 2), kPadding);
  const auto before = Tree(run);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << Text(r);
  EXPECT_EQ(r.salvaged, 1u);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
  EXPECT_EQ(Fold(run), whole);
  EXPECT_EQ(Undo(run, IdOf(r)).exit_status, 0);
  EXPECT_EQ(Tree(run), before);
}

TEST(Salvage, WithoutItNothingChanges) {
  TinyRun run({.until = Until::kSealed});
  const std::string whole = Fold(run);
  Flip(run, run.SlotPath("stage.00", 2), kPadding);
  const RepairReport r = Repair(run);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckReopened | kFsckDataLost) << Text(r);
  EXPECT_EQ(r.salvaged, 0u);
  EXPECT_NE(Fold(run), whole);
}

TEST(Salvage, EverySlotOfAFinishedRunComesBackButItsClaims) {
  TinyRun probe;
  const std::string whole = Fold(probe);
  for (const std::string stream : {"stage.00", "stage.01", "merge"}) {
    for (uint32_t seq = 0; seq < probe.SlotCount(stream); ++seq) {
      TinyRun run;
      Flip(run, run.SlotPath(stream, seq), kPadding);
      const RepairReport r = RepairAndSalvage(run);
      EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << stream << " " << seq << "\n" << Text(r);
      EXPECT_EQ(run.Fsck(true).exit_status, 0) << stream << " " << seq;
      EXPECT_EQ(Fold(run), whole) << stream << " " << seq << "\n" << Text(r);
    }
  }
}

TEST(Salvage, ARecordThatFailsItsOwnChecksumStaysLost) {
  TinyRun run({.until = Until::kSealed});
  FlipValue(run, run.SlotPath("stage.00", 2), RecordClass::kSample);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckReopened | kFsckDataLost) << Text(r);
  EXPECT_EQ(r.salvaged, 0u);
}

TEST(Salvage, ASampleNeedsBothItsParts) {
  TinyRun run({.until = Until::kSamples});
  FlipValue(run, run.SlotPath("stage.00", 2), RecordClass::kSample, 1);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.salvaged, 0u) << Text(r);
  EXPECT_NE(r.exit_status & kFsckReopened, 0);
}

// The key lies outside all checksums of the record.
TEST(Salvage, AKeyThatItsPayloadDoesNotConfirmIsNotBelieved) {
  TinyRun run({.until = Until::kEvicted});
  const std::string path = run.SlotPath("stage.00", 4);   // behind the claim and three samples: a unit
  const Bytes file = Slurp(path);
  const size_t key = ValueAt(file, RecordClass::kLayer);
  // In its leaf a big value is a page number; the key stands before that. Its `a` field, any byte of it, wherever a copy lies.
  const Bytes wanted = RecordKey{RecordClass::kLayer, 0, 2, 0, 0}.Encode();
  const auto at = std::search(file.begin(), file.end(), wanted.begin(), wanted.end());
  ASSERT_NE(at, file.end()) << key;
  Flip(run, path, static_cast<size_t>(at - file.begin()) + 6);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.salvaged, 0u) << Text(r);
}

TEST(Salvage, ClaimsAreNotSaidAgain) {
  TinyRun run({.until = Until::kSamples});
  Flip(run, run.SlotPath("stage.00", 0), kPadding);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.salvaged, 0u) << Text(r);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << "and nothing is open by it";
  RunState state(run.fs, run.layout);
  ASSERT_TRUE(state.Refresh().ok());
  EXPECT_EQ(state.stages().begin()->second.claims.size(), 1u) << "the repair's own";
}

TEST(Salvage, AStaleSlotIsNotSaidAgain) {
  TinyRun run({.until = Until::kSamples});
  const uint32_t seq = run.SlotCount("stage.00");
  run.AppendSlot("stage.00", 2, {MakeControl({RecordClass::kClaim, 0, 2, 0, 0}, Claim{2, run.incarnation(), "test", "takeover", 1, "test"}.ToJson())});
  run.AppendSlot("stage.00", 1, {MakeControl({RecordClass::kSeal, 0, 0, 0, 0}, SealRecord{3, 0, 1, {}, {}}.ToJson())});
  Flip(run, run.SlotPath("stage.00", seq + 1), kPadding);
  EXPECT_EQ(RepairAndSalvage(run).salvaged, 0u);
}

TEST(Salvage, WhatALaterVoidStruckStaysStruck) {
  TinyRun run({.until = Until::kSamples});
  VoidRecord v;
  v.target = "key";
  v.key = RecordKey{RecordClass::kSample, 0, 1, 0, 0}.Encode();
  run.AppendSlot("stage.00", 2, {MakeControl({RecordClass::kClaim, 0, 2, 0, 0}, Claim{2, run.incarnation(), "fsck", "repair", 1, "test"}.ToJson()),
                                 MakeControl({RecordClass::kVoid, 0, 0, 1, 0}, v.ToJson())});
  ASSERT_THAT(Fold(run), HasSubstr("SS-SSS")) << "sample 1 of the first stage";
  Flip(run, run.SlotPath("stage.00", 2), kPadding);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.salvaged, 0u) << Text(r);
  EXPECT_THAT(Fold(run), HasSubstr("SS-SSS"));
}

TEST(Salvage, BeforeALostSlotThatMayHaveVoidedItNothingIsBelieved) {
  TinyRun run({.until = Until::kSamples});
  run.AppendSlot("stage.00", 2, {MakeControl({RecordClass::kClaim, 0, 2, 0, 0}, Claim{2, run.incarnation(), "fsck", "repair", 1, "test"}.ToJson())});
  run.AppendSlot("stage.00", 3, {MakeControl({RecordClass::kClaim, 0, 3, 0, 0}, Claim{3, run.incarnation(), "test", "resume", 1, "test"}.ToJson())});
  Flip(run, run.SlotPath("stage.00", 2), kPadding);
  run.Rewrite(run.SlotPath("stage.00", 4), Bytes(100));
  EXPECT_EQ(RepairAndSalvage(run).salvaged, 0u);
}

TEST(Salvage, ARecordWithoutItsPacksIsNotSaidAgain) {
  TinyRun run({.until = Until::kSamples});
  RunState state(run.fs, run.layout);
  ASSERT_TRUE(state.Refresh().ok());
  const Digest pack = state.Sample(1, 0)->output->packs[0].root;
  run.Delete(run.layout.Pack(pack));
  Flip(run, run.SlotPath("stage.00", 2), kPadding);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.salvaged, 0u) << Text(r);
  EXPECT_EQ(run.Fsck().exit_status, 0) << Text(run.Fsck());
}

TEST(Salvage, WhatWasSaidAgainMeanwhileIsNotSaidAThirdTime) {
  TinyRun run({.until = Until::kSamples});
  Digest prev;
  const Slot slot = *ReadSlot(run.fs, run.layout, "stage.00", 2, *ReadJobId(run.fs, run.layout), &prev);
  run.AppendSlot("stage.00", 1, slot.records);
  Flip(run, run.SlotPath("stage.00", 2), kPadding);
  EXPECT_EQ(RepairAndSalvage(run).salvaged, 0u);
}

TEST(Salvage, DryRunSaysWhatItWouldSay) {
  TinyRun run({.until = Until::kSealed});
  Flip(run, run.SlotPath("stage.00", 2), kPadding);
  const auto before = Tree(run);
  RepairOptions o = Salvaging();
  std::vector<std::string> lines;
  o.dry_run = true;
  o.on_line = [&](const std::string& line) { lines.push_back(line); };
  EXPECT_EQ(RepairAndSalvage(run, o).salvaged, 1u);
  EXPECT_THAT(lines, ::testing::Contains(HasSubstr("say sample 1 from layer 0 of stage.00 again")));
  EXPECT_EQ(Tree(run), before);
}

// LMDB may die of such pages, or walk for ever; whatever it says, no foreign byte is folded.
TEST(Salvage, AnyByteOfASlotMayBeWrong) {
  TinyRun run({.until = Until::kSealed});
  const std::string path = run.SlotPath("stage.00", 2);
  const Bytes sound = Slurp(path);
  const Nonce job = *ReadJobId(run.fs, run.layout);
  Digest prev;
  const Slot slot = *ReadSlot(run.fs, run.layout, "stage.00", 2, job, &prev);
  std::map<Bytes, Bytes> said;
  for (const Record& r : slot.records) said[r.key.Encode()] = r.payload;
  size_t saved = 0, tried = 0;
  for (size_t at = 0; at < sound.size(); at += at < 200 || (at > 8190 && at < 8600) ? 1 : 97) {
    Bytes file = sound;
    file[at] ^= static_cast<uint8_t>(1 + at % 255);
    const fsck::Salvage s = fsck::SalvageSlot(run.fs, run.layout, "stage.00", 2, job, file);
    ++tried;
    saved += s.complete ? 1 : 0;
    for (const Record& r : s.records) {
      const auto it = said.find(r.key.Encode());
      ASSERT_TRUE(it != said.end() && it->second == r.payload) << "byte " << at;
    }
  }
  EXPECT_GT(saved, 0u);
  EXPECT_LT(saved, tried);
  RecordProperty("saved", static_cast<int>(saved));
  RecordProperty("tried", static_cast<int>(tried));
}

// ---- samples that are left out ----

// The slot of the job stream with the O record: its last one, unless something was said behind it.
uint32_t OmissionAt(TinyRun& run) {
  for (uint32_t seq = run.SlotCount("job"); seq-- > 0;) {
    Digest prev;
    const Slot slot = *ReadSlot(run.fs, run.layout, "job", seq, *ReadJobId(run.fs, run.layout), &prev);
    const bool here = std::any_of(slot.records.begin(), slot.records.end(), [](const Record& r) { return r.key.cls == RecordClass::kOmit; });
    if (here) return seq;
  }
  ADD_FAILURE() << "nothing is left out";
  return 0;
}

TEST(SalvageOmission, ItIsSaidAgainAndWhatWasMadeWithoutTheSampleCounts) {
  for (const bool late : {false, true}) {
    TinyRun run({.until = Until::kSealed, .omit_sample = 1, .omit_late = late});
    const std::string whole = Fold(run);
    ASSERT_THAT(whole, HasSubstr("EEEEZZO1(ended 2 workers)"));
    Flip(run, run.SlotPath("job", OmissionAt(run)), kPadding);
    const RepairReport r = RepairAndSalvage(run);
    EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << "and nothing is open by it\n" << Text(r);
    EXPECT_EQ(r.salvaged, 1u);
    EXPECT_THAT(r.before.plans.front().Lines(), ::testing::Contains(HasSubstr("say that sample 1 is left out of job again")));
    EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
    EXPECT_EQ(Fold(run), whole) << late;
  }
}

TEST(SalvageOmission, OfAFinishedRunAsWell) {
  TinyRun run({.omit_sample = 1, .omit_late = true});
  const std::string whole = Fold(run);
  Flip(run, run.SlotPath("job", OmissionAt(run)), kPadding);
  EXPECT_EQ(RepairAndSalvage(run).exit_status, kFsckCorrected | kFsckDataLost);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
  EXPECT_EQ(Fold(run), whole);
}

TEST(SalvageOmission, OneThatFailsItsOwnChecksumIsLostAndThatIsSaid) {
  TinyRun run({.until = Until::kSealed, .omit_sample = 1, .omit_late = true});
  FlipValue(run, run.SlotPath("job", OmissionAt(run)), RecordClass::kOmit);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.salvaged, 0u) << Text(r);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckReopened | kFsckDataLost) << Text(r);
  EXPECT_THAT(Text(r), HasSubstr("sample 1: layers were made without it, and no record that can be read leaves it out: the sample counts again"));
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
  EXPECT_THAT(Fold(run), ::testing::Not(HasSubstr("O1")));
}

TEST(SalvageOmission, OneThatIsLostBehindTheEndOfTheJobChangesNothing) {
  TinyRun run({.omit_sample = 1});
  const std::string slot = run.SlotPath("job", OmissionAt(run));
  FlipValue(run, slot, RecordClass::kOmit);
  const auto output = [&] {
    std::map<std::string, std::string> files;
    Collect(run.fs, run.out, &files);
    return files;
  };
  const auto before = output();
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << Text(r);
  EXPECT_THAT(Text(r), HasSubstr("the output was made without it, too, and stands"));
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
  EXPECT_EQ(output(), before);
  EXPECT_THAT(Fold(run), HasSubstr("PD"));
}

// A plain repair does not look into the slot, and says what that costs and how to have it otherwise.
TEST(SalvageOmission, WithoutItTheRepairSaysWhatItWouldKeep) {
  TinyRun run({.until = Until::kSealed, .omit_sample = 1});
  Flip(run, run.SlotPath("job", OmissionAt(run)), kPadding);
  EXPECT_THAT(Text(run.Fsck()), HasSubstr("--repair --salvage` says it again"));
  const RepairReport r = Repair(run);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckReopened | kFsckDataLost) << Text(r);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
}

// The key lies outside all checksums of the record.
TEST(SalvageOmission, OfAnotherSampleThanItsPayloadSaysItIsNotBelieved) {
  TinyRun run({.until = Until::kSamples, .omit_sample = 1});
  const std::string path = run.SlotPath("job", OmissionAt(run));
  Bytes file = Slurp(path);
  const Bytes wanted = RecordKey{RecordClass::kOmit, 0, 1, 0, 0}.Encode();
  const auto at = std::search(file.begin(), file.end(), wanted.begin(), wanted.end());
  ASSERT_NE(at, file.end());
  Flip(run, path, static_cast<size_t>(at - file.begin()) + 6);
  EXPECT_EQ(RepairAndSalvage(run).salvaged, 0u);
  EXPECT_THAT(Fold(run), ::testing::Not(HasSubstr("O")));
}

// A blame is an act of its worker: whoever claims the stage next finds out for himself. What lies in the slots around it stays.
TEST(SalvageOmission, ABlameIsNotSaidAgainAndNothingIsOpenByThat) {
  TinyRun run({.until = Until::kSamples, .omit_sample = 1});
  const std::string whole = Fold(run);
  PhaseBegin blame;
  blame.phase = kPhaseBlame;
  blame.sample = 1;
  blame.why = "ended 2 workers";
  const uint32_t seq = run.SlotCount("stage.01");
  run.AppendSlot("stage.01", 1, {MakeControl({RecordClass::kPhase, 1, static_cast<uint32_t>('x'), 1, 1}, blame.ToJson())});
  Flip(run, run.SlotPath("stage.01", seq), kPadding);
  const RepairReport r = RepairAndSalvage(run);
  EXPECT_EQ(r.salvaged, 0u);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << Text(r);
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
  EXPECT_EQ(Fold(run), whole);
}

// Layer 0 and the seal of the first stage were said twice, with the sample and without it: only the second time counts.
TEST(SalvageOmission, EverySlotOfAStageThatWasSealedTwice) {
  TinyRun probe({.until = Until::kSealed, .omit_sample = 1, .omit_late = true});
  const std::string whole = Fold(probe);
  for (uint32_t seq = 0; seq < probe.SlotCount("stage.00"); ++seq) {
    TinyRun run({.until = Until::kSealed, .omit_sample = 1, .omit_late = true});
    Flip(run, run.SlotPath("stage.00", seq), kPadding);
    const RepairReport r = RepairAndSalvage(run);
    EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << seq << "\n" << Text(r);
    EXPECT_EQ(run.Fsck(true).exit_status, 0) << seq;
    EXPECT_EQ(Fold(run), whole) << seq << "\n" << Text(r);
  }
  TinyRun all({.until = Until::kSealed, .omit_sample = 1, .omit_late = true});
  for (uint32_t seq = 0; seq < all.SlotCount("stage.00"); ++seq) Flip(all, all.SlotPath("stage.00", seq), kPadding);
  const RepairReport r = RepairAndSalvage(all);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << Text(r);
  EXPECT_EQ(Fold(all), whole) << Text(r);
}

// ---- killed ----

int Program(const std::string& arguments, const std::string& fail) {
  const std::string command = "HOLDFAST_FAIL='" + fail + "' " + std::string(HOLDFAST_BIN_DIR) + "/fsck.holdfast " + arguments + " >/dev/null 2>&1";
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Salvage, OnlyAsPartOfARepair) {
  TinyRun run({.until = Until::kJob});
  EXPECT_EQ(Program("--salvage " + run.dir, ""), kFsckUsage);
}

class KilledSalvage : public ::testing::TestWithParam<const char*> {};

TEST_P(KilledSalvage, TheSameLineAgainSavesTheSame) {
  TinyRun run({.until = Until::kSealed});
  const std::string whole = Fold(run);
  Flip(run, run.SlotPath("stage.00", 2), kPadding);
  Flip(run, run.SlotPath("stage.01", 1), kPadding);
  ASSERT_EQ(Program("--repair --salvage " + run.dir, GetParam()), 128 + 9) << "the fail-point was never reached";
  Program("--repair --salvage " + run.dir, "");
  EXPECT_EQ(run.Fsck(true).exit_status, 0) << Text(run.Fsck(true));
  EXPECT_EQ(Fold(run), whole);
}

INSTANTIATE_TEST_SUITE_P(Points, KilledSalvage,
                         ::testing::Values("repair.manifest", "repair.tombstone", "repair.tombstone:2", "repair.claimed", "repair.claimed:2", "repair.claimed:3", "repair.release"));

}  // namespace
}  // namespace holdfast::testing
