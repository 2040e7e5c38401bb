// SPDX-License-Identifier: Apache-2.0
//
// The queue of a root and the roster of its nodes: races for a name, lost replies, order, transitions, garbage in the log.
#include "ledger/cluster/queue.h"

#include <atomic>
#include <cerrno>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include "ledger/base/sim_file_system.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

using Op = QueueRecord::Op;
using State = QueuedJob::State;

std::string IdOf(uint32_t number) {
  char id[16];
  std::snprintf(id, sizeof id, "%012x", number);
  return id;
}

QueueRecord Submit(uint32_t number, const std::string& name = "") {
  QueueRecord q;
  q.job = IdOf(number);
  q.name = name;
  q.source = "/m";
  q.out = "/o";
  return q;
}

QueueRecord Say(Op op, uint32_t number, const std::string& outcome = "") {
  QueueRecord q;
  q.op = op;
  q.job = IdOf(number);
  q.outcome = outcome;
  return q;
}

QueueRecord OfNode(Op op, const std::string& node) {
  QueueRecord q;
  q.op = op;
  q.node = node;
  return q;
}

Incarnation Self(uint8_t who) {
  Incarnation i;
  i.node = "n" + std::to_string(who);
  i.nonce = NonceOf(who);
  return i;
}

struct World {
  SimFileSystem fs{1};
  StillClock clock;
  RootLayout layout{"/root"};
  Nonce uuid;
  uint32_t checks = 0;

  World() {
    const auto root = EnsureRoot(fs, layout, NonceOf(1));
    EXPECT_TRUE(root.ok()) << root.error().message;
    uuid = root->uuid;
  }
  Queue Fresh() {
    Queue queue(fs, layout, uuid);
    HOLDFAST_EXPECT_OK(queue.Refresh());
    return queue;
  }
  Status Tell(Queue* queue, const QueueRecord& record, uint8_t who = 1) {
    return queue->Append(clock, Self(who), record, [this](const Queue&) {
      ++checks;
      return OkStatus();
    });
  }
};

std::vector<std::string> Ids(const std::vector<const QueuedJob*>& jobs) {
  std::vector<std::string> ids;
  for (const QueuedJob* job : jobs) ids.push_back(job->submit.job);
  return ids;
}

State StateOf(const Queue& queue, uint32_t number) { return (*queue.Find(IdOf(number)))->state; }

TEST(Queue, CheckIsAskedAlsoOfAnEmptyQueueAndOfOurOwnClaim) {
  World w;
  Queue queue = w.Fresh();
  const Status refused = queue.Append(w.clock, Self(1), Submit(1), [](const Queue&) -> Status { return InvalidArgument("no"); });
  EXPECT_EQ(refused.code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(queue.next_seq(), 0u);
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Submit(1, "a")));
  EXPECT_EQ(w.checks, 1u);
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Submit(2, "b")));  // the same incarnation holds the stream now
  EXPECT_EQ(w.checks, 2u);
  EXPECT_EQ(queue.jobs().size(), 2u);
  EXPECT_EQ(w.Fresh().jobs().size(), 2u);
  EXPECT_EQ(queue.next_seq(), 2u);
}

TEST(Queue, TheSecondOfTwoThatWantANameReadsTheFirst) {
  World w;
  Queue loser = w.Fresh(), winner = w.Fresh();
  bool raced = false;
  w.fs.SetHook([&](const std::string& op, const std::string& path) {
    if (op == "link" && !raced && path.find("/log/queue/") != std::string::npos) {
      raced = true;
      HOLDFAST_EXPECT_OK(w.Tell(&winner, Submit(2, "night"), 2));
    }
    return OkStatus();
  });
  const Status lost = w.Tell(&loser, Submit(1, "night"), 1);
  EXPECT_EQ(lost.code(), ErrorCode::kAlreadyExists);
  EXPECT_NE(lost.error().message.find(IdOf(2)), std::string::npos) << lost.error().message;
  EXPECT_TRUE(raced);
  const Queue fresh = w.Fresh();
  ASSERT_EQ(fresh.jobs().size(), 1u);
  EXPECT_EQ(fresh.jobs()[0].submit.job, IdOf(2));
  EXPECT_EQ(loser.jobs().size(), 1u);  // it folded what it lost to
}

TEST(Queue, ManyThreadsOneWinnerPerName) {
  TempDir dir;
  PosixFileSystem fs;
  const RootLayout layout(dir.path() + "/root");
  const auto root = EnsureRoot(fs, layout, NonceOf(1));
  HOLDFAST_ASSERT_OK(root);
  constexpr uint32_t kThreads = 6;
  std::atomic<uint32_t> won{0}, lost{0};
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      RealClock clock;
      Queue queue(fs, layout, root->uuid);
      const Status same = queue.Append(clock, Self(static_cast<uint8_t>(t + 1)), Submit(t + 1, "night"), nullptr);
      won += same.ok();
      lost += same.code() == ErrorCode::kAlreadyExists;
      HOLDFAST_EXPECT_OK(queue.Append(clock, Self(static_cast<uint8_t>(t + 1)), Submit(100 + t, "own-" + std::to_string(t)), nullptr));
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(won, 1u);
  EXPECT_EQ(lost, kThreads - 1);
  Queue queue(fs, layout, root->uuid);
  HOLDFAST_ASSERT_OK(queue.Refresh());
  EXPECT_EQ(queue.jobs().size(), kThreads + 1);
}

TEST(Queue, ALostReplyIsNoSecondSubmission) {
  World w;
  Queue queue = w.Fresh();
  w.fs.LoseLinkReply(1, EIO);
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Submit(1, "a")));
  EXPECT_EQ(w.Fresh().jobs().size(), 1u);

  // No clear answer at all: the name cannot be opened, although the link was made.
  w.fs.SetNegativeLookups(1000);
  const auto peek = w.fs.Open(w.layout.streams().Slot("queue", 1));  // from now on the name looks missing
  EXPECT_FALSE(peek.ok());
  w.fs.LoseLinkReply(1, EIO);
  EXPECT_EQ(w.Tell(&queue, Submit(2, "b")).code(), ErrorCode::kTransient);
  w.fs.SetNegativeLookups(0);
  w.fs.Crash();  // forgets the negative lookups; what was synced stays
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Submit(2, "b")));
  const Queue fresh = w.Fresh();
  ASSERT_EQ(fresh.jobs().size(), 2u);
  EXPECT_EQ(fresh.jobs()[1].submit.name, "b");
}

// The process ends, or the power, at every single change of the file system; then the same line is typed again.
TEST(Queue, CutAtEveryStepAndSaidAgain) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    bool finished = false;
    for (uint64_t cut = 1; !finished; ++cut) {
      SimFileSystem fs(seed);
      const RootLayout layout("/root");
      StillClock clock;
      const auto root = EnsureRoot(fs, layout, NonceOf(1));
      HOLDFAST_ASSERT_OK(root);
      Queue before(fs, layout, root->uuid);
      HOLDFAST_ASSERT_OK(before.Append(clock, Self(1), Submit(1, "a"), nullptr));
      uint64_t n = 0;
      fs.SetHook([&](const std::string&, const std::string&) -> Status { return ++n >= cut ? Status(Internal("dead")) : OkStatus(); });
      finished = before.Append(clock, Self(2), Submit(2, "b"), nullptr).ok() && n < cut;
      fs.SetHook(nullptr);
      if (seed % 2 == 0) fs.Crash();
      Queue after(fs, layout, root->uuid);
      HOLDFAST_ASSERT_OK(after.Refresh());
      ASSERT_TRUE(!finished || after.jobs().size() == 2) << "acknowledged, and gone";
      HOLDFAST_ASSERT_OK(after.Append(clock, Self(3), Submit(2, "b"), nullptr));
      ASSERT_EQ(after.jobs().size(), 2u) << "seed " << seed << ", cut at " << cut;
      fs.Crash();   // "said before" is a promise too
      Queue later(fs, layout, root->uuid);
      HOLDFAST_ASSERT_OK(later.Refresh());
      ASSERT_EQ(later.jobs().size(), 2u) << "seed " << seed << ", cut at " << cut;
    }
  }
}

// Several speakers on a server that loses replies and calls: whoever was told OK is there, names are unique, all read the same.
TEST(Queue, WhateverTheServerDoesAllReadTheSame) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    World w;
    std::mt19937_64 random(seed);
    std::vector<std::unique_ptr<Queue>> speakers;
    for (int i = 0; i < 4; ++i) speakers.push_back(std::make_unique<Queue>(w.fs, w.layout, w.uuid));
    std::map<std::string, std::string> acknowledged;   // name -> id
    for (uint32_t step = 0; step < 40; ++step) {
      if (random() % 3 == 0) w.fs.LoseLinkReply(1 + random() % 2, EIO);
      if (random() % 3 == 0) w.fs.FailOperation(1 + random() % 30, EIO);
      const QueueRecord record = Submit(step % 20 + 1, "name-" + std::to_string(random() % 10));
      const uint8_t who = static_cast<uint8_t>(random() % speakers.size());
      const Status told = w.Tell(speakers[who].get(), record, who + 1);
      if (!told.ok()) continue;
      ASSERT_TRUE(acknowledged.emplace(record.name, record.job).first->second == record.job) << "seed " << seed << ": two of a name were told OK";
    }
    const Queue fresh = w.Fresh();
    std::map<std::string, std::string> there;
    for (const QueuedJob& job : fresh.jobs()) ASSERT_TRUE(there.emplace(job.submit.name, job.submit.job).second);
    for (const auto& [name, id] : acknowledged) ASSERT_EQ(there[name], id) << "seed " << seed;
    EXPECT_GT(acknowledged.size(), 3u);
    for (const auto& speaker : speakers) {
      HOLDFAST_ASSERT_OK(speaker->Refresh());
      ASSERT_EQ(speaker->jobs().size(), fresh.jobs().size());
      for (size_t i = 0; i < fresh.jobs().size(); ++i) ASSERT_EQ(speaker->jobs()[i].submit.ToJson(), fresh.jobs()[i].submit.ToJson());
    }
  }
}

TEST(Queue, SayingItTwiceIsSayingItOnce) {
  World w;
  Queue queue = w.Fresh();
  for (const QueueRecord& record : {Submit(1, "a"), Say(Op::kFinish, 1, "failed"), Say(Op::kRetry, 1), Say(Op::kCancel, 1), OfNode(Op::kDrain, "n1"), OfNode(Op::kUndrain, "n1")}) {
    const uint32_t before = queue.next_seq();
    HOLDFAST_ASSERT_OK(w.Tell(&queue, record));
    EXPECT_EQ(queue.next_seq(), before + 1);
    HOLDFAST_ASSERT_OK(w.Tell(&queue, record));
    EXPECT_EQ(queue.next_seq(), before + 1);
  }
  EXPECT_EQ(w.Fresh().jobs()[0].retries, 1u);
}

// Whoever says the end of a job does what follows from it, once: another who wants to say the same learns that it was said.
TEST(Queue, WhatAnotherSaidIsForTheCheckToJudge) {
  World w;
  Queue queue = w.Fresh(), other = w.Fresh();
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Submit(1, "a")));
  const auto finish = [&](Queue* q, uint8_t who) {
    return q->Append(w.clock, Self(who), Say(Op::kFinish, 1, "done"), [&](const Queue& now) -> Status {
      return StateOf(now, 1) == State::kQueued ? OkStatus() : Status(MakeError(ErrorCode::kAlreadyExists, "it has ended"));
    });
  };
  HOLDFAST_ASSERT_OK(finish(&queue, 1));
  HOLDFAST_EXPECT_OK(finish(&queue, 1));                                // the same daemon, after a reply that was lost
  EXPECT_EQ(finish(&other, 2).code(), ErrorCode::kAlreadyExists);       // another one
  EXPECT_EQ(queue.next_seq(), 2u);
  HOLDFAST_EXPECT_OK(other.Append(w.clock, Self(2), Say(Op::kFinish, 1, "done"), nullptr));
  EXPECT_EQ(other.next_seq(), 2u);
}

TEST(Queue, JobsRunByPriorityThenInOrderAndAfterOthers) {
  World w;
  Queue queue = w.Fresh();
  QueueRecord urgent = Submit(3, "urgent"), later = Submit(4, "later");
  urgent.priority = 2000;
  later.after = {"first", IdOf(2)};
  for (const QueueRecord& record : {Submit(1, "first"), Submit(2), urgent, later}) HOLDFAST_ASSERT_OK(w.Tell(&queue, record));
  EXPECT_EQ(Ids(queue.Runnable()), (std::vector<std::string>{IdOf(3), IdOf(1), IdOf(2)}));
  EXPECT_EQ(queue.Held(**queue.Find("later")), "waits for first, " + IdOf(2));
  EXPECT_EQ(queue.Held(**queue.Find("first")), "");
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Say(Op::kFinish, 1, "done")));
  EXPECT_EQ(Ids(queue.Runnable()), (std::vector<std::string>{IdOf(3), IdOf(2)}));
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Say(Op::kFinish, 2, "failed")));
  EXPECT_EQ(Ids(queue.Runnable()), (std::vector<std::string>{IdOf(3)}));
  EXPECT_EQ(queue.Held(**queue.Find("later")), IdOf(2) + " failed: `jobctl resume " + IdOf(2) + "`, or `jobctl cancel later`");
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Say(Op::kFinish, 2, "done")));  // it was resumed by hand, and is done
  EXPECT_EQ(Ids(queue.Runnable()), (std::vector<std::string>{IdOf(3), IdOf(4)}));
  EXPECT_EQ(w.Tell(&queue, [] { QueueRecord q = Submit(9); q.after = {"nobody"}; return q; }()).code(), ErrorCode::kNotFound);
}

// What may follow on what: rows are states, one record each; '-' is refused, '=' changes nothing.
TEST(Queue, Transitions) {
  const auto make = [](World* w, Queue* queue, State state) {
    if (state == State::kRefused) {
      QueueRecord refuse = Submit(1, "a");
      refuse.op = Op::kRefuse;
      refuse.detail = "needs 3 GB more";
      HOLDFAST_EXPECT_OK(w->Tell(queue, refuse));
      return;
    }
    HOLDFAST_EXPECT_OK(w->Tell(queue, Submit(1, "a")));
    if (state == State::kDone) HOLDFAST_EXPECT_OK(w->Tell(queue, Say(Op::kFinish, 1, "done")));
    if (state == State::kFailed) HOLDFAST_EXPECT_OK(w->Tell(queue, Say(Op::kFinish, 1, "failed")));
    if (state == State::kCancelled) HOLDFAST_EXPECT_OK(w->Tell(queue, Say(Op::kCancel, 1)));
  };
  struct Case {
    State from;
    QueueRecord said;
    std::optional<State> to;  // none: refused
  };
  const auto done = Say(Op::kFinish, 1, "done"), failed = Say(Op::kFinish, 1, "failed"), cancel = Say(Op::kCancel, 1), retry = Say(Op::kRetry, 1);
  const std::vector<Case> cases = {
      {State::kQueued, done, State::kDone},       {State::kQueued, failed, State::kFailed},       {State::kQueued, cancel, State::kCancelled},
      {State::kQueued, retry, State::kQueued},    {State::kDone, done, State::kDone},             {State::kDone, failed, std::nullopt},
      {State::kDone, cancel, std::nullopt},       {State::kDone, retry, State::kQueued},            {State::kFailed, done, State::kDone},
      {State::kFailed, failed, State::kFailed},   {State::kFailed, cancel, State::kCancelled},    {State::kFailed, retry, State::kQueued},
      {State::kCancelled, done, State::kDone},    {State::kCancelled, failed, std::nullopt},      {State::kCancelled, cancel, State::kCancelled},
      {State::kCancelled, retry, State::kQueued}, {State::kRefused, done, std::nullopt},          {State::kRefused, failed, std::nullopt},
      {State::kRefused, cancel, std::nullopt},    {State::kRefused, retry, std::nullopt},
  };
  for (const Case& c : cases) {
    World w;
    Queue queue = w.Fresh();
    make(&w, &queue, c.from);
    const Status told = w.Tell(&queue, c.said);
    EXPECT_EQ(told.ok(), c.to.has_value()) << static_cast<int>(c.from) << " " << c.said.ToJson();
    EXPECT_TRUE(told.ok() || told.code() == ErrorCode::kInvalidArgument);
    EXPECT_EQ(StateOf(w.Fresh(), 1), c.to.value_or(c.from));
  }
}

TEST(Queue, RefusedNamesAreFreeAgain) {
  World w;
  Queue queue = w.Fresh();
  QueueRecord refuse = Submit(1, "night");
  refuse.op = Op::kRefuse;
  refuse.detail = "needs 3 GB more";
  HOLDFAST_ASSERT_OK(w.Tell(&queue, refuse));
  EXPECT_EQ((*queue.Find("night"))->detail, "needs 3 GB more");
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Submit(2, "night")));
  EXPECT_EQ((*queue.Find("night"))->submit.job, IdOf(2));
  EXPECT_EQ(w.Tell(&queue, Submit(3, "night")).code(), ErrorCode::kAlreadyExists);
  EXPECT_EQ(w.Tell(&queue, Submit(2, "other")).code(), ErrorCode::kAlreadyExists);  // the id is taken
}

TEST(Queue, FindsByIdPrefixAndName) {
  World w;
  Queue queue = w.Fresh();
  EXPECT_NE(queue.Find("x").error().message.find("jobctl submit"), std::string::npos);
  QueueRecord one = Submit(0, "one"), two = Submit(0, "two");
  one.job = "aaaa11112222", two.job = "aaaa33334444";
  HOLDFAST_ASSERT_OK(w.Tell(&queue, one));
  HOLDFAST_ASSERT_OK(w.Tell(&queue, two));
  EXPECT_EQ((*queue.Find("aaaa1"))->submit.name, "one");
  EXPECT_EQ((*queue.Find("two"))->submit.job, two.job);
  EXPECT_EQ(queue.Find("aaaa").code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(queue.Find("aaa").code(), ErrorCode::kNotFound);  // too short to mean one
  const auto missing = queue.Find("three");
  EXPECT_EQ(missing.code(), ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find("two (aaaa33334444), one (aaaa11112222)"), std::string::npos) << missing.error().message;
}

TEST(Queue, DrainsAreRemembered) {
  World w;
  Queue queue = w.Fresh();
  HOLDFAST_ASSERT_OK(w.Tell(&queue, OfNode(Op::kDrain, "n1")));
  HOLDFAST_ASSERT_OK(w.Tell(&queue, OfNode(Op::kDrain, "n2")));
  HOLDFAST_ASSERT_OK(w.Tell(&queue, OfNode(Op::kUndrain, "n1")));
  EXPECT_EQ(w.Fresh().drained(), (std::set<std::string>{"n2"}));
}

TEST(Queue, WhatMayNotBeSaidCountsForNothingWhoeverWroteIt) {
  World w;
  Queue queue = w.Fresh();
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Submit(1, "night")));
  QueueRecord escape = Submit(2, "x");
  escape.job = "../../../tmp";
  Record noise = MakeControl({RecordClass::kQueue, 0, 0, 0, 0}, Json{{"op", "explode"}});
  noise.key.a = 4;
  Record text = noise;
  text.key.a = 5;
  text.payload = Bytes(20, '{');
  std::vector<Record> records = {noise, text};
  uint32_t a = 0;
  for (const QueueRecord& q : {Submit(3, "night"), escape, Say(Op::kCancel, 77), Say(Op::kFinish, 1)}) {
    records.push_back(MakeControl({RecordClass::kQueue, 0, a++, 0, 0}, q.ToJson()));
  }
  StreamReader reader(w.fs, w.layout.streams(), "queue", w.uuid);
  StreamWriter::Options options;
  options.job = w.uuid;
  options.claim.incarnation = NonceOf(9);
  HOLDFAST_ASSERT_OK(StreamWriter::Open(w.fs, w.layout.streams(), w.clock, &reader, nullptr, options, records));
  HOLDFAST_ASSERT_OK(w.Tell(&queue, Submit(4, "next")));
  const Queue fresh = w.Fresh();
  ASSERT_EQ(fresh.jobs().size(), 2u);
  EXPECT_EQ(fresh.jobs()[0].state, State::kQueued);
  EXPECT_EQ(fresh.jobs()[1].submit.name, "next");
  EXPECT_EQ(w.Tell(&queue, escape).code(), ErrorCode::kInvalidArgument);  // and nobody writes it by accident
}

// ---- the roster ----


Status Join(World* w, StreamReader* reader, const Incarnation& self, std::unique_ptr<StreamWriter>* writer) {
  StreamWriter::Options options;
  options.job = w->uuid;
  options.claim.incarnation = self.nonce;
  options.claim.node = self.node;
  HOLDFAST_ASSIGN(*writer, StreamWriter::Open(w->fs, w->layout.streams(), w->clock, reader, nullptr, options,
                                              {MakeControl({RecordClass::kIncarnation, 0, 0, 0, 0}, self.ToJson())}));
  return OkStatus();
}

TEST(Roster, KnowsTheLastLifeOfEveryNode) {
  World w;
  Roster mine(w.fs, w.layout, w.uuid), theirs(w.fs, w.layout, w.uuid);
  std::unique_ptr<StreamWriter> first, second, other;
  Incarnation spark = Self(1), reborn = Self(1), box = Self(2);
  spark.endpoint = "tcp://10.0.0.1:5";
  reborn.nonce = NonceOf(11);
  reborn.endpoint = "tcp://10.0.0.1:6";
  HOLDFAST_ASSERT_OK(Join(&w, mine.ReaderOf("n1"), spark, &first));
  EXPECT_EQ(mine.nodes().at("n1").incarnation.endpoint, "tcp://10.0.0.1:5");  // its own claim needs no reading back
  HOLDFAST_ASSERT_OK(Join(&w, theirs.ReaderOf("n2"), box, &other));
  HOLDFAST_ASSERT_OK(mine.Refresh());
  EXPECT_EQ(mine.nodes().size(), 2u);
  EXPECT_EQ(mine.nodes().at("n2").incarnation.nonce, NonceOf(2));
  HOLDFAST_ASSERT_OK(Join(&w, theirs.ReaderOf("n1"), reborn, &second));
  HOLDFAST_ASSERT_OK(mine.Refresh());
  EXPECT_EQ(mine.nodes().at("n1").incarnation.endpoint, "tcp://10.0.0.1:6");
  EXPECT_EQ(mine.nodes().at("n1").lives, 2u);
  EXPECT_FALSE(mine.nodes().at("n1").released);
  HOLDFAST_ASSERT_OK(second->ReleaseStream("drain"));
  HOLDFAST_ASSERT_OK(mine.Refresh());
  EXPECT_TRUE(mine.nodes().at("n1").released);
  EXPECT_EQ(mine.nodes().at("n1").reason, "drain");
  EXPECT_FALSE(mine.nodes().at("n2").released);
  EXPECT_EQ(first->ReleaseStream("drain").code(), ErrorCode::kFenced);  // the first life was taken over
}

TEST(Roster, OneDamagedStreamDoesNotHideTheOthers) {
  World w;
  Roster roster(w.fs, w.layout, w.uuid), fresh(w.fs, w.layout, w.uuid);
  std::unique_ptr<StreamWriter> a, b;
  HOLDFAST_ASSERT_OK(Join(&w, roster.ReaderOf("n1"), Self(1), &a));
  HOLDFAST_ASSERT_OK(Join(&w, roster.ReaderOf("n2"), Self(2), &b));
  w.fs.Corrupt(w.layout.streams().Slot("node.n1", 0), 5000, 1);
  HOLDFAST_ASSERT_OK(w.fs.MakeDirs("/root/log/node..."));   // no name of a node
  EXPECT_EQ(fresh.Refresh().code(), ErrorCode::kCorrupt);
  ASSERT_EQ(fresh.nodes().size(), 1u);
  EXPECT_EQ(fresh.nodes().begin()->first, "n2");
}

TEST(Roster, ARecordCannotSpeakForAnotherNode) {
  World w;
  Roster roster(w.fs, w.layout, w.uuid);
  std::unique_ptr<StreamWriter> writer;
  Incarnation liar = Self(2);
  liar.endpoint = "tcp://evil:1";
  HOLDFAST_ASSERT_OK(Join(&w, roster.ReaderOf("n1"), liar, &writer));
  EXPECT_EQ(roster.nodes().at("n1").name, "n1");
  EXPECT_EQ(roster.nodes().at("n1").incarnation.endpoint, "");
}

}  // namespace
}  // namespace holdfast
