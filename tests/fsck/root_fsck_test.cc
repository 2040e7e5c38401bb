// SPDX-License-Identifier: Apache-2.0
//
// fsck of roots: every kind of damage in queue, roster and jobs under its own code, and what is normal is no finding.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>

#include "fsck/repair.h"
#include "ledger/base/process_identity.h"
#include "ledger/base/sim_file_system.h"
#include "ledger/cluster/queue.h"
#include "tests/fsck/tiny_run.h"

namespace holdfast::testing {
namespace {

using ::testing::HasSubstr;
using Op = QueueRecord::Op;

constexpr int kLostAndErrors = kFsckDataLost | kFsckErrorsLeft;
constexpr char kNobody[] = "00000000beef";   // an id that no job has

std::string Text(const FsckReport& r) { return FsckReportToText("ROOT", r); }

const FsckFinding* Find(const FsckReport& r, const std::string& code, const std::string& object) {
  const auto it = std::find_if(r.findings.begin(), r.findings.end(), [&](const FsckFinding& f) { return f.code == code && f.object.find(object) != std::string::npos; });
  return it == r.findings.end() ? nullptr : &*it;
}

void Expect(const FsckReport& r, int exit_status, const std::string& code, const std::string& object) {
  EXPECT_EQ(r.exit_status, exit_status) << Text(r);
  EXPECT_NE(Find(r, code, object), nullptr) << code << " " << object << " is not among\n" << Text(r);
}

Incarnation Self(const std::string& node, uint8_t who) {
  Incarnation i;
  i.node = node;
  i.nonce.bytes.fill(who);
  i.hostname = "host" + std::to_string(who);
  return i;
}

// A root with nothing in it but what a test says.
struct TestRoot {
  TempDir temp;
  PosixFileSystem fs;
  RealClock clock;
  RootLayout layout;
  Nonce uuid;

  TestRoot() : layout(temp.path() + "/root") {
    const auto made = EnsureRoot(fs, layout, Nonce::Random());
    HOLDFAST_CHECK(made.ok());
    uuid = made->uuid;
  }
  RunOptions Job(Until until = Until::kDone) const {
    RunOptions o;
    o.until = until;
    o.root = layout.root();
    return o;
  }
  void Say(QueueRecord record, const Incarnation& self = Self("test", 1)) {
    Queue queue(fs, layout, uuid);
    const Status s = queue.Append(clock, self, record, nullptr);
    ASSERT_TRUE(s.ok()) << s.error().message;
  }
  void Say(Op op, const std::string& job, const std::string& name = "") {
    QueueRecord q;
    q.op = op;
    q.job = job;
    q.name = name;
    if (op == Op::kFinish) q.outcome = "done";
    Say(q);
  }
  // A daemon of that name begins a life.
  void Join(const Incarnation& self) {
    StreamReader reader(fs, layout.streams(), RootLayout::NodeStream(self.node), uuid);
    Claim(&reader, self, uuid, layout.streams(), {MakeControl({RecordClass::kIncarnation, 0, 0, 0, 0}, self.ToJson())});
  }
  void Claim(StreamReader* reader, const Incarnation& self, const Nonce& job, const RunLayout& where, std::vector<Record> records) {
    StreamWriter::Options options;
    options.job = job;
    options.claim.incarnation = self.nonce;
    options.claim.node = self.node;
    const auto writer = StreamWriter::Open(fs, where, clock, reader, nullptr, options, std::move(records));
    ASSERT_TRUE(writer.ok()) << writer.error().message;
  }
  FsckReport Fsck(bool deep = false) { return RunFsck(fs, layout.root(), {.deep = deep, .threads = 2, .on_progress = {}}); }
};

TEST(FsckRoot, AnEmptyRootIsClean) {
  TestRoot root;
  const FsckReport r = root.Fsck();
  EXPECT_EQ(r.exit_status, 0) << Text(r);
  EXPECT_EQ(r.state, "root");
  EXPECT_TRUE(r.findings.empty()) << Text(r);
  EXPECT_THAT(Text(r), HasSubstr("root of 0 jobs; clean"));
}

// What is not read any more is not judged either.
TEST(FsckRoot, AnInterruptedDeepCheckFindsNoDamageThatIsNotThere) {
  TestRoot root;
  TinyRun first(root.Job()), second(root.Job());
  for (const TinyRun* run : {&first, &second}) root.Say(Op::kSubmit, run->id());
  TempDir cache;
  std::atomic<bool> stop{false};
  FsckOptions o;
  o.deep = true;
  o.clock = &root.clock;
  o.cache_dir = cache.path();
  o.stop = &stop;
  o.on_progress = [&](uint64_t done, uint64_t) { stop = stop || done > 0; };
  const FsckReport r = RunFsck(root.fs, root.layout.root(), o);
  EXPECT_EQ(r.exit_status, kFsckInterrupted) << Text(r);
  ASSERT_EQ(r.jobs.size(), 2u);
  EXPECT_EQ(r.jobs[1].state, "not checked");
  o.on_progress = nullptr;
  stop = false;
  const FsckReport again = RunFsck(root.fs, root.layout.root(), o);
  EXPECT_EQ(again.exit_status, 0) << Text(again);
  EXPECT_GT(again.bytes_known, 0u);
}

TEST(FsckRoot, QueueNodesAndJobsAreSummedUp) {
  TestRoot root;
  TinyRun done(root.Job()), half(root.Job(Until::kSamples));
  ASSERT_TRUE(root.fs.MakeDirs(done.dir + "/logs").ok());   // what workers say lies in the run directory
  Spill(done.dir + "/logs/n1.log", AsBytes("hello\n"));
  root.Join(Self("n1", 1));
  root.Say(Op::kSubmit, done.id(), "first");
  root.Say(Op::kSubmit, half.id(), "second");
  root.Say(Op::kFinish, done.id());
  root.Say(Op::kRefuse, kNobody, "too-large");
  for (const bool deep : {false, true}) {
    const FsckReport r = root.Fsck(deep);
    EXPECT_EQ(r.exit_status, 0) << Text(r);
    for (const FsckFinding& f : r.findings) EXPECT_EQ(f.severity, FsckSeverity::kInfo) << Text(r);
    ASSERT_EQ(r.jobs.size(), 3u);
    EXPECT_EQ(r.jobs[0].name + r.jobs[0].state + r.jobs[0].queued_as, "firstdonedone");
    EXPECT_EQ(r.jobs[1].name + r.jobs[1].state + r.jobs[1].queued_as, "secondrunning or stoppedqueued");
    EXPECT_EQ(r.jobs[2].state + r.jobs[2].queued_as, "missingrefused");
    EXPECT_EQ(r.streams, 2u + 4u + 3u);
    EXPECT_THAT(Text(r), HasSubstr("job " + done.id() + " (first): done, done in the queue; nothing to say"));
    const Json j = FsckReportToJson("ROOT", r);
    EXPECT_EQ(j["schema"], 1);
    ASSERT_EQ(j["jobs"].size(), 3u);
    EXPECT_EQ(j["jobs"][0], (Json{{"id", done.id()}, {"name", "first"}, {"state", "done"}, {"queue", "done"}, {"exit_status", 0}, {"findings", 0}}));
  }
  EXPECT_FALSE(FsckReportToJson("RUN", half.Fsck()).contains("jobs"));
}

TEST(FsckRoot, ProgressOverAllJobsOnlyRises) {
  TestRoot root;
  TinyRun a(root.Job()), b(root.Job());
  uint64_t done = 0, total = 0;
  bool rises = true;
  const FsckReport r = RunFsck(root.fs, root.layout.root(), {.deep = true, .threads = 1, .on_progress = [&](uint64_t d, uint64_t t) {
                                                              rises = rises && d >= done;
                                                              done = d, total = t;
                                                            }});
  EXPECT_EQ(r.exit_status, 0) << Text(r);
  EXPECT_TRUE(rises);
  EXPECT_EQ(done, total);
  EXPECT_GT(r.bytes_read, done);
}

TEST(FsckRoot, DamageInAJobIsNamedWithTheJob) {
  TestRoot root;
  TinyRun good(root.Job()), bad(root.Job(Until::kSamples));
  root.Say(Op::kSubmit, good.id(), "good");
  root.Say(Op::kSubmit, bad.id(), "bad");
  bad.Delete(bad.SlotPath("stage.00", 1));
  const FsckReport r = root.Fsck();
  Expect(r, kLostAndErrors, "F010", "jobs/" + bad.id() + "/log/stage.00/00000001.seg");
  EXPECT_EQ(r.jobs[0].exit_status, 0);
  EXPECT_EQ(r.jobs[1].exit_status, kLostAndErrors);
  EXPECT_EQ(r.jobs[1].findings, 1u);
}

// Inside a root the next command is that of the root.
TEST(FsckRoot, AdviceNamesTheRootsCommand) {
  TestRoot root;
  TinyRun run(root.Job(Until::kMerged));
  root.Say(Op::kSubmit, run.id(), "a");
  ASSERT_TRUE(root.fs.RemoveTree(run.out).ok());
  for (const FsckReport& r : {root.Fsck(), run.Fsck()}) {
    const FsckFinding* f = Find(r, "F081", run.out);
    ASSERT_NE(f, nullptr) << Text(r);
    EXPECT_THAT(f->advice, HasSubstr("jobctl --root " + root.layout.root() + " resume " + run.id()));
  }
}

TEST(FsckRoot, EveryByteOfRootIsGuarded) {
  TestRoot root;
  root.Say(Op::kRefuse, kNobody, "a");
  const Bytes sound = Slurp(root.layout.RootFile());
  for (size_t at = 0; at < sound.size(); ++at) {
    Bytes damaged = sound;
    damaged[at] ^= 0x21;
    ASSERT_TRUE(root.fs.Unlink(root.layout.RootFile()).ok());
    Spill(root.layout.RootFile(), damaged);
    const FsckReport r = root.Fsck();
    ASSERT_EQ(r.exit_status, kFsckErrorsLeft) << "byte " << at << "\n" << Text(r);
    ASSERT_NE(Find(r, "F001", "ROOT"), nullptr) << Text(r);
    ASSERT_EQ(r.jobs.size(), 1u) << "the queue is read all the same";
  }
  ASSERT_TRUE(root.fs.Unlink(root.layout.RootFile()).ok());
  Expect(root.Fsck(), kFsckErrorsLeft, "F001", "ROOT");
}

// Two slots at least in the queue and in the stream of n1.
void FillStreams(TestRoot* root) {
  root->Join(Self("n1", 1));
  root->Join(Self("n1", 2));
  root->Say(Op::kRefuse, kNobody, "a");
  root->Say(Op::kRefuse, "00000000cafe", "b");
}

TEST(FsckRoot, DamageInQueueAndNodeStreams) {
  for (const bool node : {false, true}) {
    TestRoot root;
    FillStreams(&root);
    const std::string stream = node ? "node.n1" : "queue";
    const std::string path = root.layout.streams().Slot(stream, 0);
    Bytes damaged = Slurp(path);
    damaged[100] ^= 1;
    ASSERT_TRUE(root.fs.Unlink(path).ok());
    Spill(path, damaged);
    const FsckReport r = root.Fsck();
    Expect(r, kLostAndErrors, "F012", "log/" + stream + "/00000000.seg");
    EXPECT_THAT(Find(r, "F012", stream)->advice, HasSubstr("jobctl fsck " + root.layout.root() + " --repair"));
    ASSERT_TRUE(root.fs.Unlink(path).ok());
    Expect(root.Fsck(), kLostAndErrors, "F010", "log/" + stream + "/00000000.seg");
  }
}

TEST(FsckRoot, ForeignNames) {
  TestRoot root;
  for (const char* name : {"/log/stage.00", "/log/notes", "/log/node.a b", "/jobs/old-stuff"}) ASSERT_TRUE(root.fs.MakeDirs(root.layout.root() + name).ok());
  const FsckReport r = root.Fsck();
  for (const char* object : {"log/stage.00", "log/notes", "log/node.a b", "jobs/old-stuff"}) Expect(r, kFsckErrorsLeft, "F003", object);
}

TEST(FsckRoot, JobsThatAreNotThere) {
  TestRoot root;
  TinyRun run(root.Job(Until::kJob));
  root.Say(Op::kSubmit, kNobody, "a");
  const FsckReport queued = root.Fsck();
  Expect(queued, kFsckErrorsLeft, "F034", std::string("jobs/") + kNobody);
  EXPECT_EQ(Find(queued, "F034", kNobody)->severity, FsckSeverity::kError);
  EXPECT_THAT(Find(queued, "F034", kNobody)->advice, HasSubstr("cancel"));
  EXPECT_EQ(Find(queued, "F090", "jobs/" + run.id())->severity, FsckSeverity::kInfo);   // submitted by nobody
  root.Say(Op::kCancel, kNobody);
  const FsckReport cancelled = root.Fsck();
  Expect(cancelled, 0, "F034", std::string("jobs/") + kNobody);
  EXPECT_EQ(Find(cancelled, "F034", kNobody)->severity, FsckSeverity::kInfo);
}

TEST(FsckRoot, RecordsThatDoNotDecode) {
  TestRoot root;
  root.Join(Self("n1", 1));
  StreamReader reader(root.fs, root.layout.streams(), "queue", root.uuid);
  const Incarnation self = Self("n1", 1);
  root.Claim(&reader, self, root.uuid, root.layout.streams(), {MakeControl({RecordClass::kQueue, 0, 0, 0, 0}, Json{{"op", "explode"}})});
  Expect(root.Fsck(), kFsckErrorsLeft, "F020", "log/queue slot 0, record Q");

  TinyRun run(root.Job(Until::kJob));
  run.AppendSlot("job", 1, {MakeControl({RecordClass::kAssignment, 0, 1, 0, 0}, Json{{"number", 1}})});
  Expect(run.Fsck(), kFsckErrorsLeft, "F020", "log/job slot 2, record A");
}

TEST(FsckRoot, ClaimsOfStrangers) {
  TestRoot root;
  RunOptions options = root.Job(Until::kJob);
  options.introduce = false;
  TinyRun run(options);
  const FsckReport stranger = root.Fsck();
  Expect(stranger, 0, "F032", "jobs/" + run.id() + "/log/job slot 0");
  EXPECT_EQ(Find(stranger, "F032", "")->severity, FsckSeverity::kWarning);
  EXPECT_EQ(stranger.jobs[0].findings, 1u);
  EXPECT_NE(Find(run.Fsck(), "F032", "log/job slot 0"), nullptr);
  // A daemon introduces itself in the root, once for all jobs.
  Incarnation daemon = Self("n1", 1);
  daemon.nonce = run.incarnation();
  root.Join(daemon);
  EXPECT_EQ(Find(root.Fsck(), "F032", ""), nullptr);
  EXPECT_EQ(Find(run.Fsck(), "F032", ""), nullptr);
}

TEST(FsckRoot, IncarnationsInStageStreamsCount) {
  TinyRun run({.until = Until::kJob});
  const Incarnation worker = Self("n1", 7);
  StreamReader reader(run.fs, run.layout, "stage.00", *ReadJobId(run.fs, run.layout));
  StreamWriter::Options options;
  options.job = *ReadJobId(run.fs, run.layout);
  options.claim.incarnation = worker.nonce;
  RealClock clock;
  ASSERT_TRUE(StreamWriter::Open(run.fs, run.layout, clock, &reader, nullptr, options, {MakeControl({RecordClass::kIncarnation, 0, 0, 0, 0}, worker.ToJson())}).ok());
  const FsckReport r = run.Fsck();
  EXPECT_EQ(Find(r, "F032", ""), nullptr) << Text(r);
  EXPECT_EQ(r.exit_status, 0) << Text(r);
}

TEST(FsckRoot, TwinsOfOneName) {
  TestRoot root;
  const Incarnation first = Self("n1", 1), second = Self("n1", 2), other = Self("n2", 3);
  root.Join(first);
  root.Join(second);
  root.Join(other);
  uint32_t said = 0;
  const auto say = [&](const Incarnation& self) {   // anything, as long as it is new
    QueueRecord drain;
    drain.op = Op::kDrain;
    drain.node = "x" + std::to_string(++said);
    root.Say(drain, self);
  };
  say(first);
  say(other);
  say(second);
  EXPECT_EQ(Find(root.Fsck(), "F033", ""), nullptr);   // one after the other: a restart
  say(first);                                          // the first one lives
  const FsckReport r = root.Fsck();
  Expect(r, 0, "F033", "log/node.n1");
  EXPECT_EQ(Find(r, "F033", "")->severity, FsckSeverity::kWarning);
  EXPECT_THAT(Find(r, "F033", "")->message, HasSubstr("host1"));
  EXPECT_THAT(Find(r, "F033", "")->message, HasSubstr("host2"));
}

// The same across a job's streams: an old coordinator that goes on behind its successor.
TEST(FsckRoot, TwinsAreFoundInJobsToo) {
  TestRoot root;
  TinyRun run(root.Job(Until::kJob));
  const Nonce job = *ReadJobId(run.fs, run.layout);
  const Incarnation first = Self("n1", 1), second = Self("n1", 2);
  root.Join(first);
  root.Join(second);
  for (const Incarnation& self : {first, second, first}) {
    StreamReader reader(root.fs, run.layout, "job", job);
    root.Claim(&reader, self, job, run.layout, {});
  }
  const FsckReport r = root.Fsck();
  Expect(r, 0, "F033", "log/node.n1");
  EXPECT_THAT(Find(r, "F033", "")->message, HasSubstr("jobs/" + run.id() + "/job"));
}

TEST(FsckRoot, ARootWithoutHardLinks) {
  SimFileSystem sim;
  sim.SetHook([](const std::string& op, const std::string&) -> Status { return op == "link" ? ErrnoError(EPERM, "linking") : OkStatus(); });
  const RootLayout layout("/root");
  const auto made = EnsureRoot(sim, layout, Nonce::Random());
  ASSERT_TRUE(made.ok()) << made.error().message;
  const auto fs = OpenFileSystemFor(sim, *made);
  RealClock clock;
  Queue queue(*fs, layout, made->uuid);
  for (const char* id : {"00000000beef", "00000000cafe"}) {
    QueueRecord q;
    q.op = Op::kRefuse;
    q.job = id;
    ASSERT_TRUE(queue.Append(clock, Self("n1", 1), q, nullptr).ok());
  }
  const FsckReport r = RunFsck(sim, "/root", {});
  EXPECT_EQ(r.exit_status, 0) << Text(r);
  EXPECT_EQ(r.slots, 2u);
  EXPECT_EQ(r.jobs.size(), 2u);
  sim.Corrupt(layout.streams().Slot("queue", 0) + "/data", 50, 1);
  Expect(RunFsck(sim, "/root", {}), kLostAndErrors, "F012", "log/queue/00000000.seg");
}

// ---- repair ----

RepairReport Repair(TestRoot& root) {
  RepairOptions o;
  o.watch_ms = 0;
  o.orphan_age_ms = 0;
  return RunRepair(root.fs, root.clock, root.layout.root(), o);
}

TEST(FsckRootRepair, AStreamOfTheRootCanBeReadAgain) {
  for (const bool node : {false, true}) {
    TestRoot root;
    FillStreams(&root);
    const std::string path = root.layout.streams().Slot(node ? "node.n1" : "queue", 0);
    Bytes damaged = Slurp(path);
    damaged[100] ^= 1;
    ASSERT_TRUE(root.fs.Unlink(path).ok());
    Spill(path, damaged);
    const RepairReport r = Repair(root);
    EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckDataLost) << Text(r.before) << Text(r.after) << ::testing::PrintToString(r.refusals);
    EXPECT_EQ(root.Fsck().exit_status, 0) << Text(root.Fsck());
    Queue queue(root.fs, root.layout, root.uuid);
    EXPECT_TRUE(queue.Refresh().ok());
    EXPECT_EQ(queue.jobs().size(), node ? 2u : 1u) << "what the lost slot said was never said";
    ASSERT_EQ(r.quarantines.size(), 1u);
    RepairOptions o;
    o.watch_ms = 0;
    EXPECT_EQ(RunUndo(root.fs, root.clock, root.layout.root(), BaseName(r.quarantines[0]), o).exit_status, 0);
    EXPECT_EQ(Slurp(path), damaged);
  }
}

TEST(FsckRootRepair, AJobOfTheRootIsMendedInItsOwnDirectory) {
  TestRoot root;
  TinyRun job(root.Job(Until::kSamples));
  root.Say(Op::kSubmit, job.id(), "night");
  job.Delete(job.SlotPath("stage.00", 2));
  const RepairReport r = Repair(root);
  EXPECT_EQ(r.exit_status, kFsckCorrected | kFsckReopened | kFsckDataLost) << Text(r.before) << Text(r.after) << ::testing::PrintToString(r.refusals);
  ASSERT_EQ(r.quarantines.size(), 1u);
  EXPECT_TRUE(r.quarantines[0].starts_with(job.dir + "/quarantine/"));
  EXPECT_EQ(root.Fsck().exit_status, 0) << Text(root.Fsck());
}

TEST(FsckRootRepair, AQueuedJobIsLeftAloneWhileADaemonLives) {
  TestRoot root;
  Incarnation self = Self("n1", 1);
  const ProcessIdentity process = ThisProcess();
  self.hostname = process.hostname, self.machine_id = process.machine_id, self.boot_id = process.boot_id;
  self.pid = process.pid, self.start_ticks = process.start_ticks;
  root.Join(self);
  TinyRun job(root.Job(Until::kSamples));
  root.Say(Op::kSubmit, job.id(), "night");
  job.Delete(job.SlotPath("stage.00", 2));
  const RepairReport r = Repair(root);
  EXPECT_EQ(r.exit_status, kLostAndErrors);
  EXPECT_FALSE(r.acted);
  ASSERT_EQ(r.refusals.size(), 1u);
  EXPECT_THAT(r.refusals[0], HasSubstr("cancel " + job.id()));
  root.Say(Op::kCancel, job.id());
  EXPECT_EQ(Repair(root).exit_status, kFsckCorrected | kFsckReopened | kFsckDataLost);
}

}  // namespace
}  // namespace holdfast::testing
