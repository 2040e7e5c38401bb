// SPDX-License-Identifier: Apache-2.0
//
// Rules of `jobctl status` (state, pace, summary) and what it prints, on values made by hand.
#include "jobctl/job_status.h"

#include <gtest/gtest.h>

#include "jobctl/status_text.h"

namespace holdfast {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

StageStatus Stage(uint16_t number, const std::string& phase, uint64_t samples, const std::string& node) {
  StageStatus s;
  s.stage = number;
  s.first_layer = number * 2u;
  s.last_layer = number * 2u + 2;
  s.phase = phase;
  s.node = node;
  s.node_alive = !node.empty();
  s.task = node.empty() ? "" : "running";
  s.samples_done = samples;
  s.samples_total = 100;
  s.units_total = 3;
  return s;
}

JobStatus Job(const std::string& name, const std::string& state, std::vector<StageStatus> stages) {
  JobStatus j;
  j.id = "0123456789ab";
  j.name = name;
  j.state = state;
  j.source = "/m";
  j.out = "/o/" + name;
  j.folded = true;
  j.submitted_wall_ns = 1000 * kSecond;
  j.stages = std::move(stages);
  return j;
}

NodeStatus Node(const std::string& name, NodeLife life) {
  NodeStatus n;
  n.known.name = name;
  n.life = life;
  return n;
}

TEST(JobStatusRules, PaceComesFromTwoCommitsOfOneOwner) {
  EXPECT_EQ(SecondsLeft({10, 1, 5 * kSecond}, {20, 1, 25 * kSecond}, 30), 60u);
  EXPECT_EQ(SecondsLeft({10, 1, 5 * kSecond}, {20, 2, 25 * kSecond}, 30), std::nullopt) << "two owners have two clocks";
  EXPECT_EQ(SecondsLeft({10, 1, 25 * kSecond}, {20, 1, 5 * kSecond}, 30), std::nullopt) << "a clock that was set back tells nothing";
  EXPECT_EQ(SecondsLeft({20, 1, 5 * kSecond}, {20, 1, 25 * kSecond}, 30), std::nullopt);
}

TEST(JobStatusRules, AJobIsWhereItsLastStageIs) {
  EXPECT_EQ(JobPhase(Job("a", "running", {Stage(0, "evict", 100, "n1"), Stage(1, "calibrate", 40, "n2")})), "calibrate");
  EXPECT_EQ(JobPhase(Job("a", "running", {Stage(0, "calibrate", 10, "n1"), Stage(1, "waiting", 0, "n2")})), "calibrate");
  EXPECT_EQ(JobPhase(Job("a", "running", {Stage(0, "load", 0, "n1"), Stage(1, "waiting", 0, "n2")})), "waiting");
  EXPECT_EQ(JobPhase(Job("a", "running", {Stage(0, "done", 100, "n1"), Stage(1, "done", 100, "n2")})), "merge");
  EXPECT_EQ(JobPhase(Job("a", "done", {Stage(0, "done", 100, "n1")})), "done");
  EXPECT_EQ(JobPhase(Job("a", "queued", {})), "waiting");
}

TEST(JobStatusRules, RunsWhileAnyStageIsWorkedOn) {
  EXPECT_EQ(RunningState(Job("a", "queued", {Stage(0, "calibrate", 3, "n1"), Stage(1, "waiting", 0, "")})), "running");
  JobStatus waits = Job("a", "queued", {Stage(0, "done", 100, "n1"), Stage(1, "waiting", 0, "")});
  EXPECT_EQ(RunningState(waits), "waiting");
  waits.stages[1] = Stage(1, "calibrate", 5, "n2");
  waits.stages[1].node_alive = false;
  EXPECT_EQ(RunningState(waits), "waiting");
  waits.stages[1].node_alive = true;
  waits.stages[1].task = "refused";
  EXPECT_EQ(RunningState(waits), "waiting");
  waits.stages[1] = Stage(1, "done", 100, "n2");
  EXPECT_EQ(RunningState(waits), "merging");
  waits.merge.node = "n1";
  EXPECT_EQ(RunningState(waits), "waiting") << "the node of the merge is silent";
}

TEST(JobStatusRules, EtaIsThatOfTheSlowestStageAndNoGuess) {
  JobStatus job = Job("a", "running", {Stage(0, "calibrate", 50, "n1"), Stage(1, "calibrate", 40, "n2"), Stage(2, "done", 100, "n3")});
  job.stages[0].eta_seconds = 50;
  EXPECT_EQ(JobEta(job), std::nullopt) << "nobody knows how fast stage 1 is";
  job.stages[1].eta_seconds = 75;
  EXPECT_EQ(JobEta(job), 75u);
  job.stages.push_back(Stage(3, "waiting", 0, "n1"));
  EXPECT_EQ(JobEta(job), std::nullopt) << "stage 3 has still to come";
  job.stages.pop_back();
  job.state = "waiting";
  EXPECT_EQ(JobEta(job), std::nullopt);
}

TEST(JobStatusRules, NextCommandFitsTheState) {
  EXPECT_EQ(NextCommand(Job("a", "failed", {}), "/r", true), "jobctl --root /r resume a");
  EXPECT_EQ(NextCommand(Job("a", "done", {}), "/r", true), "jobctl verify /o/a --source /m");
  EXPECT_EQ(NextCommand(Job("a", "running", {}), "/r", true), "");
  EXPECT_NE(NextCommand(Job("a", "queued", {}), "/r", false).find("holdfastd --root /r"), std::string::npos);
}

RootStatus Night() {
  RootStatus r;
  r.root = "/r";
  r.nodes.nodes = {Node("n1", NodeLife::kAlive), Node("n2", NodeLife::kSilent)};
  JobStatus first = Job("first", "done", {Stage(0, "done", 100, "n1")}), middle = Job("middle", "refused", {}), third = Job("third", "done", {});
  first.restarts = {{"signal 9", 2}};
  first.ended_wall_ns = 4600 * kSecond;
  middle.detail = "model.safetensors: NaN";
  middle.folded = false;
  middle.ended_wall_ns = 1001 * kSecond;
  third.restarts = {{"signal 9", 1}, {"out_of_memory", 1}};
  third.ended_wall_ns = 8200 * kSecond;
  r.jobs = {first, middle, third};
  return r;
}

TEST(NightSummary, CountsStatesFailuresRestartsAndTime) {
  const NightSummary s = Summarize(Night(), 99999 * kSecond);
  EXPECT_EQ(s.states.at("done"), 2u);
  EXPECT_EQ(s.failed.size(), 1u);
  EXPECT_EQ(s.failed[0].second, "model.safetensors: NaN");
  EXPECT_EQ(s.restarts.at("signal 9"), 3u);
  EXPECT_EQ(s.elapsed_seconds, 7200u) << "from the first submission to the last end, not to now";
  RootStatus open = Night();
  open.jobs[2].ended_wall_ns = 0;
  EXPECT_EQ(Summarize(open, 1010 * kSecond + 5000 * kSecond).elapsed_seconds, 5010u);
}

TEST(StatusText, SaysWhatANightWasLike) {
  const RootStatus night = Night();
  const std::string text = RenderStatus(night, Summarize(night, 9000 * kSecond), 9000 * kSecond, Colours::kNo);
  for (const char* part : {"from the ledger alone: no daemon answers", "2 done, 1 refused (middle);", "restarts 4 (out_of_memory x1, signal 9 x3)", "model.safetensors: NaN",
                           "n1 alive", "n2 silent", "2 h 00 min"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  EXPECT_EQ(text.find('\033'), std::string::npos);
  EXPECT_NE(RenderStatus(night, Summarize(night, 0), 0, Colours::kYes).find("\033[32m"), std::string::npos);
}

// Found by status_fuzz: the texts of a queue record reached the terminal as they were.
TEST(StatusText, WhatAQueueRecordSaysMovesNoCursor) {
  JobStatus job;
  job.id = "0123456789ab";
  job.name = "night";
  job.state = "failed";
  job.source = "/models/a\033[2J";
  job.out = "/out/\xc2\x9b" "1A";
  job.detail = "no space\r\nSummary  9 done";
  job.next = "jobctl resume \a";
  job.report = Json{{"out", "/out\033]0;x"}, {"restart_reasons", {{"kill\033[A", 3}, {"odd", "three"}}}, {"zero_amax_sites", {7}}};
  RootStatus status;
  status.root = "/root\x7f";
  status.jobs = {job};
  status.nodes.warnings = {"old\033[31m"};
  for (const std::string& text : {RenderStatus(status, Summarize(status, 0), 0, Colours::kNo), RenderJob(job, Colours::kNo)}) {
    for (const char c : text) ASSERT_TRUE(c == '\n' || (static_cast<uint8_t>(c) >= 0x20 && c != 0x7f)) << text;
    EXPECT_EQ(text.find("\xc2\x9b"), std::string::npos);
    EXPECT_EQ(text.find("\nSummary  9"), std::string::npos) << "a line that looks like ours";
    EXPECT_NE(text.find("\\x1b[2J"), std::string::npos) << text;
  }
  EXPECT_EQ(RenderJob(job, Colours::kYes).find("\033[2J"), std::string::npos);
}

TEST(StatusText, SaysWhatStandsInTheWayOfAStage) {
  JobStatus job = Job("a", "waiting", {Stage(0, "calibrate", 3, "n2"), Stage(1, "waiting", 0, "")});
  job.stages[0].node_alive = false;
  job.stages[0].last_death = "out of memory";
  job.stages[0].claims = {{1, 10, "start", "n2"}, {2, 11, "signal 9", "n2"}};
  job.stages[1].note = "needs 1.20 GB on n1, which comes closest with 1.00 GB (200 MB short)";
  const std::string text = RenderJob(job, Colours::kNo);
  for (const char* part : {"n2 is silent", "last died of: out of memory", "restarts 1 (signal 9 x1)", "200 MB short", "no node", "stage 0, life 2: signal 9, on n2"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

TEST(StatusText, TellsWhatWasLostOnTheWayAlsoWhenAllIsWell) {
  JobStatus job = Job("a", "done", {Stage(0, "done", 100, "n1")});
  job.moves = {{1, kSecond, "start", ""}, {2, 2 * kSecond, "node n3 lost (silent for 120 s)", ""}, {3, 3 * kSecond, "all stages are sealed", "n1"}};
  const std::string text = RenderJob(job, Colours::kNo);
  EXPECT_NE(text.find("placed anew: node n3 lost (silent for 120 s)"), std::string::npos) << text;
  EXPECT_EQ(text.find("start"), std::string::npos) << text;
  EXPECT_EQ(text.find("sealed"), std::string::npos) << "the merge is no accident\n" << text;
}

TEST(StatusJson, HasEveryDocumentedMember) {
  const RootStatus night = Night();
  const Json doc = ToJson(night, Summarize(night, 0));
  EXPECT_EQ(doc["schema"], 2);
  for (const char* key : {"root", "answered_by", "warnings", "jobs", "nodes", "summary"}) EXPECT_TRUE(doc.contains(key)) << key;
  for (const char* key : {"job", "name", "state", "detail", "source", "out", "stages", "merge", "restarts", "eta_seconds", "next"}) {
    EXPECT_TRUE(doc["jobs"][0].contains(key)) << key;
  }
  EXPECT_TRUE(doc["jobs"][1]["stages"].is_array()) << "also where no ledger was read";
  EXPECT_EQ(doc["jobs"][0]["stages"][0]["restarts"], 0);
  EXPECT_EQ(doc["nodes"][1]["life"], "silent");
}

TEST(StatusText, SaysWhichSamplesAreLeftOut) {
  JobStatus job = Job("a", "running", {Stage(0, "calibrate", 10, "n1")});
  job.samples = 128;
  EXPECT_EQ(RenderJob(job, Colours::kNo).find("left out"), std::string::npos);
  job.omitted = {{{"sample", 5u}, {"stage", 0u}, {"why", "ended 2 workers"}}, {{"sample", 9u}, {"stage", 1u}, {"why", "not finite at\033[2J x"}}};
  const std::string text = RenderJob(job, Colours::kNo);
  EXPECT_NE(text.find("2 of 128 samples left out: 5 (ended 2 workers), 9 (not finite at"), std::string::npos) << text;
  EXPECT_EQ(text.find('\033'), std::string::npos);
  EXPECT_EQ(ToJson(job)["omitted"][1]["sample"], 9);
}

}  // namespace
}  // namespace holdfast
