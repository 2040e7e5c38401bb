// SPDX-License-Identifier: Apache-2.0
//
// Which group of layers comes next, and which cuts nobody needs any more.
#include "daemon/worker/todo.h"

#include <algorithm>

#include "tests/ledger/run_testing.h"

namespace holdfast {
namespace {

constexpr StageId kStage{0};
using Samples = std::vector<uint32_t>;

// The cut of a sample behind a layer; its only pack is called by `root`, or by both.
Cut CutOf(uint32_t sample, uint32_t layer, uint8_t root = 0) {
  PackManifest m;
  m.file_size = 4096;
  m.chunks = {{.offset = 1024, .stored_len = 96, .raw_len = 48, .digest = {}}};
  m.skeleton = DigestOf(root != 0 ? root : static_cast<uint8_t>(16 * layer + sample));
  m.root = PackRoot(m);
  return {.tokens = 3, .hidden = 8, .digest = DigestOf(static_cast<uint8_t>(sample + 1)), .packs = {m}};
}

std::vector<Record> Passed(uint32_t sample, uint32_t first, uint32_t last, uint8_t root = 0) {
  SampleRecord r = SmallSample(sample, first, last);
  r.output = CutOf(sample, last, root);
  return r.ToRecords(kStage);
}

// Six layers in one stage, which nobody has passed yet.
class Groups : public ::testing::Test {
 protected:
  void Pass(const Samples& samples, uint32_t first, uint32_t last) {
    std::vector<std::vector<Record>> slots;
    for (const uint32_t s : samples) slots.push_back(Passed(s, first, last));
    run_.Write("stage.00", slots);
  }
  std::optional<Todo> Next(uint32_t layers_at_once, const std::function<bool(const Cut&)>& usable = [](const Cut&) { return true; }) {
    state_.emplace(run_.fs, run_.layout);
    HOLDFAST_EXPECT_OK(state_->Refresh());
    return NextGroup(*state_, stage_, layers_at_once, usable);
  }
  ConsumedCuts Consumed(uint32_t from = 0) {
    state_.emplace(run_.fs, run_.layout);
    HOLDFAST_EXPECT_OK(state_->Refresh());
    return FindConsumedCuts(*state_, stage_, from);
  }
  void Expect(const std::optional<Todo>& todo, uint32_t first, uint32_t last, const Samples& samples) {
    ASSERT_TRUE(todo.has_value());
    EXPECT_EQ(todo->first_layer, first);
    EXPECT_EQ(todo->last_layer, last);
    EXPECT_EQ(todo->samples, samples);
    EXPECT_EQ(todo->cuts.size(), first == 0 ? 0 : samples.size());
    EXPECT_TRUE(todo->upstream_wanted.empty());
  }

  const StagePlan stage_{kStage, 0, 6};
  TestRun run_{6, {stage_}};
  std::optional<RunState> state_;
};

TEST_F(Groups, WhatHasToBePassedAgainIsKnown) {
  Pass({0, 1, 2, 3}, 0, 2);
  const auto onward = Next(2);
  Expect(onward, 2, 4, {0, 1, 2, 3});
  EXPECT_FALSE(PassedBefore(*state_, *onward));
  const auto again = Next(2, [](const Cut&) { return false; });
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->first_layer, 0u);
  EXPECT_TRUE(PassedBefore(*state_, *again));
}

TEST_F(Groups, AResidentStageIsOneGroup) { Expect(Next(6), 0, 6, {0, 1, 2, 3}); }

TEST_F(Groups, AllSamplesPassOneGroupBeforeTheNext) {
  Expect(Next(2), 0, 2, {0, 1, 2, 3});
  Pass({0, 2}, 0, 2);
  Expect(Next(2), 0, 2, {1, 3});
  Pass({1, 3}, 0, 2);
  Expect(Next(2), 2, 4, {0, 1, 2, 3});
  EXPECT_EQ(Next(2)->cuts.at(3).packs[0].root, CutOf(3, 2).packs[0].root);
  EXPECT_EQ(state_->SamplesThrough(0, 6), 1u);   // four samples, a third of the way
}

TEST_F(Groups, AnotherSizeGoesOnWhereTheLastOneStopped) {
  Pass({0, 1}, 0, 3);
  Expect(Next(1), 0, 1, {2, 3});                 // fewer layers than before: a group ends inside the last one
  Expect(Next(6), 0, 3, {2, 3});                 // more: not beyond what the others passed
  Pass({2, 3}, 0, 1);
  Expect(Next(6), 1, 3, {2, 3});
}

TEST_F(Groups, TheEndOfTheStageEndsAGroup) {
  Pass({0, 1, 2, 3}, 0, 4);
  Expect(Next(3), 4, 6, {0, 1, 2, 3});
  Pass({0, 1, 2, 3}, 4, 6);
  EXPECT_EQ(Next(3), std::nullopt);
}

TEST_F(Groups, ALostCutIsMadeAgainByTheSameGroup) {
  Pass({0, 1, 2, 3}, 0, 2);
  Pass({0, 1, 2, 3}, 2, 4);
  const Digest lost = CutOf(1, 4).packs[0].root;
  const auto usable = [&](const Cut& cut) { return cut.packs[0].root != lost; };
  Expect(Next(4, usable), 2, 4, {1});            // from the cut before it, through the layers that were passed together before
  Expect(Next(1, usable), 2, 3, {1});
  const auto none = [](const Cut&) { return false; };
  Expect(Next(4, none), 0, 2, {0, 1, 2, 3});     // from the tokens
}

TEST_F(Groups, CutsAreConsumedOnceAllSamplesPassedTheGroupBehindThem) {
  Pass({0, 1, 2, 3}, 0, 2);
  EXPECT_TRUE(Consumed().packs.empty());
  Pass({0, 1, 2}, 2, 4);
  EXPECT_EQ(Consumed().below, 2u);
  EXPECT_TRUE(Consumed().packs.empty());
  Pass({3}, 2, 4);
  EXPECT_EQ(Consumed().below, 4u);
  EXPECT_EQ(Consumed().packs.size(), 4u);
  EXPECT_TRUE(Consumed(4).packs.empty());        // they went before
  Pass({0, 1, 2, 3}, 4, 6);
  EXPECT_EQ(Consumed(4).packs.size(), 4u);       // those behind layer 3; what stands behind the stage is the next one's
  EXPECT_EQ(Consumed(4).packs[0].root, std::min({CutOf(0, 4).packs[0].root, CutOf(1, 4).packs[0].root, CutOf(2, 4).packs[0].root, CutOf(3, 4).packs[0].root}));
}

// Two samples of the same tokens have cuts of the same bytes, so the same pack.
TEST_F(Groups, APackThatAnotherCutRefersToStays) {
  run_.Write("stage.00", {Passed(0, 0, 2, 99), Passed(1, 0, 2), Passed(2, 0, 2), Passed(3, 0, 2)});
  run_.Write("stage.00", {Passed(0, 2, 4), Passed(1, 2, 4, 99), Passed(2, 2, 4), Passed(3, 2, 4)});
  EXPECT_EQ(Consumed().packs.size(), 3u);
}

TEST(StageTodo, OnlyTheCutBehindTheStageMayBeWanted) {
  const StagePlan first{StageId(0), 0, 4}, second{StageId(1), 4, 6};
  TestRun run(6, {first, second});
  // Everybody passed the first stage, but sample 2 without a cut at its end.
  run.Write("stage.00", {Passed(0, 0, 4), Passed(1, 0, 4), Passed(2, 0, 2), SampleSlot(2, kStage, 2, 4), Passed(3, 0, 4)});
  RunState state(run.fs, run.layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  const auto all = [](const Cut&) { return true; };
  const auto todo = NextGroup(state, first, 1, all);
  ASSERT_TRUE(todo);
  EXPECT_EQ(todo->samples, (Samples{2}));
  EXPECT_EQ(std::make_pair(todo->first_layer, todo->last_layer), std::make_pair(2u, 3u));
  EXPECT_EQ(NextGroup(state, first, 9, all)->last_layer, 4u);
  const auto behind = NextGroup(state, second, 9, all);
  ASSERT_TRUE(behind);
  EXPECT_EQ(behind->samples, (Samples{0, 1, 2, 3}));
  EXPECT_EQ(behind->upstream_wanted, (Samples{2}));
}

}  // namespace
}  // namespace holdfast
