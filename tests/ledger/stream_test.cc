// SPDX-License-Identifier: Apache-2.0
//
// Ownership of streams on the simulated file system: races, zombies, lost replies, twins, full disks, power cuts.
#include "ledger/log/stream.h"

#include <cerrno>
#include <map>

#include "ledger/base/forwarding_file_system.h"
#include "ledger/base/sim_file_system.h"
#include "ledger/log/publish.h"
#include "ledger/segment/segment.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

constexpr char kStream[] = "stage.03";

Record Note(uint32_t number, uint8_t fill = 0) {
  Record r;
  r.key = {RecordClass::kPhase, 3, number, 0, 0};
  r.payload = Bytes(10, fill);
  return r;
}

struct World {
  SimFileSystem fs;
  RunLayout layout{"/run"};
  StillClock clock;
  Nonce job = NonceOf(0x77);

  explicit World(uint64_t seed = 1) : fs(seed) {}

  struct Owner {  // one process: a reader, a writer through it
    StreamReader reader;
    std::unique_ptr<StreamWriter> writer;
  };
  StreamWriter::Options OptionsOf(uint8_t who) const {
    StreamWriter::Options o;
    o.job = job;
    o.claim.incarnation = NonceOf(who);
    o.claim.node = "node" + std::to_string(who);
    o.claim.reason = "test";
    return o;
  }
  Result<std::unique_ptr<Owner>> Claim(uint8_t who, std::function<Status(const class Claim&)> may = nullptr) {
    std::unique_ptr<Owner> owner(new Owner{StreamReader(fs, layout, kStream, job), nullptr});
    StreamWriter::Options o = OptionsOf(who);
    o.may_take_over = std::move(may);
    HOLDFAST_ASSIGN(owner->writer, StreamWriter::Open(fs, layout, clock, &owner->reader, nullptr, o));
    return owner;
  }
  std::unique_ptr<Owner> ClaimOk(uint8_t who) {
    auto owner = Claim(who);
    EXPECT_TRUE(owner.ok()) << owner.error().message;
    return std::move(owner).value();
  }
  // Numbers of the notes that count, in order; folds from scratch.
  std::vector<uint32_t> Notes(StreamState* state = nullptr) {
    StreamReader reader(fs, layout, kStream, job);
    std::vector<uint32_t> notes;
    const Status s = reader.Poll([&](const Record& r, const Slot&) {
      if (r.key.cls == RecordClass::kPhase) notes.push_back(r.key.a);
      return OkStatus();
    });
    EXPECT_TRUE(s.ok()) << s.error().message;
    if (state != nullptr) *state = reader.state();
    return notes;
  }
  // Publishes a slot behind everybody's back.
  void Forge(uint32_t seq, uint64_t epoch, const Nonce& incarnation, const Digest& prev, std::vector<Record> records) {
    SegmentTrailer t;
    t.seq = seq;
    t.epoch = epoch;
    t.job = job;
    t.incarnation = incarnation;
    t.commit = Nonce::Random();
    t.stream = StreamId(kStream);
    t.prev = prev;
    for (Record& r : records) r.epoch = epoch;
    const auto segment = BuildSegment(t, records);
    PublishOptions options;
    options.tmp_dir = layout.TmpDir(NonceOf(0xff));
    HOLDFAST_EXPECT_OK(fs.MakeDirs(options.tmp_dir));
    HOLDFAST_EXPECT_OK(Publish(fs, layout.Slot(kStream, seq), segment->parts(), options));
  }
};

using Numbers = std::vector<uint32_t>;

TEST(Stream, ClaimAppendReleaseClaimAgain) {
  World w;
  auto a = w.ClaimOk(1);
  EXPECT_EQ(a->writer->epoch(), 1u);
  EXPECT_EQ(a->writer->next_seq(), 1u);
  HOLDFAST_ASSERT_OK(a->writer->Append({Note(1), Note(2)}));
  HOLDFAST_ASSERT_OK(a->writer->ReleaseStream("done"));
  bool asked = false;
  auto b = w.Claim(2, [&](const Claim&) -> Status { asked = true; return Stopped("no"); });
  HOLDFAST_ASSERT_OK(b);
  EXPECT_FALSE(asked) << "a released stream is free";
  EXPECT_EQ((*b)->writer->epoch(), 2u);
  HOLDFAST_ASSERT_OK((*b)->writer->Append({Note(3)}));
  StreamState state;
  EXPECT_EQ(w.Notes(&state), (Numbers{1, 2, 3}));
  EXPECT_EQ(state.claim.node, "node2");
  EXPECT_EQ(state.stale, 0u);
}

TEST(Stream, WhatComesWithTheClaimIsInItsSlot) {
  World w;
  StreamReader reader(w.fs, w.layout, kStream, w.job);
  std::map<RecordClass, int> seen;
  const auto count = [&](const Record& r, const Slot& s) {
    EXPECT_EQ(s.seq, 0u);
    ++seen[r.key.cls];
    return OkStatus();
  };
  HOLDFAST_ASSERT_OK(StreamWriter::Open(w.fs, w.layout, w.clock, &reader, count, w.OptionsOf(1), {Note(1)}));
  EXPECT_EQ(seen[RecordClass::kClaim], 1);
  EXPECT_EQ(seen[RecordClass::kPhase], 1);
}

TEST(Stream, TakeoverFencesTheFormerOwnerForGood) {
  World w;
  auto a = w.ClaimOk(1);
  HOLDFAST_ASSERT_OK(a->writer->Append({Note(1)}));
  auto b = w.ClaimOk(2);
  EXPECT_EQ(a->writer->Append({Note(2)}).code(), ErrorCode::kFenced);
  EXPECT_EQ(a->writer->Append({Note(2)}).code(), ErrorCode::kFenced);
  EXPECT_EQ(a->writer->ReleaseStream("done").code(), ErrorCode::kFenced);
  HOLDFAST_ASSERT_OK(b->writer->Append({Note(3)}));
  EXPECT_EQ(w.Notes(), (Numbers{1, 3}));
}

TEST(Stream, RefusedTakeoverLeavesTheOwnerAlone) {
  World w;
  auto a = w.ClaimOk(1);
  const auto b = w.Claim(2, [](const Claim& c) -> Status {
    EXPECT_EQ(c.node, "node1");
    return Stopped("alive");
  });
  EXPECT_EQ(b.code(), ErrorCode::kStopped);
  HOLDFAST_EXPECT_OK(a->writer->Append({Note(1)}));
}

// A sleeps at every single operation of its commit while B takes over and works, then wakes.
TEST(Stream, ZombieWakesAnywhereAndChangesNothing) {
  for (uint64_t at = 1; at < 12; ++at) {
    World w;
    auto a = w.ClaimOk(1);
    std::unique_ptr<World::Owner> b;
    uint64_t n = 0;
    w.fs.SetHook([&](const std::string&, const std::string&) -> Status {
      if (++n != at) return OkStatus();
      w.fs.SetHook(nullptr);
      b = w.ClaimOk(2);
      HOLDFAST_EXPECT_OK(b->writer->Append({Note(7)}));
      return OkStatus();
    });
    const Status s = a->writer->Append({Note(1)});
    const bool slept = b != nullptr;
    w.fs.SetHook(nullptr);
    if (!slept) b = w.ClaimOk(2);
    // What was acknowledged is there; what was fenced is not.
    const Numbers notes = w.Notes();
    EXPECT_EQ(std::count(notes.begin(), notes.end(), 1u), s.ok() ? 1 : 0) << "at operation " << at;
    EXPECT_EQ(std::count(notes.begin(), notes.end(), 7u), slept ? 1 : 0);
    EXPECT_TRUE(s.ok() || s.code() == ErrorCode::kFenced) << s.error().message;
    EXPECT_EQ(a->writer->Append({Note(2)}).code(), ErrorCode::kFenced);
  }
}

TEST(Stream, LostLinkReplyIsACommit) {
  World w;
  w.fs.LoseLinkReply(1, EIO);
  auto a = w.ClaimOk(1);
  for (const int err : {EEXIST, EIO, ENOENT, ESTALE}) {
    w.fs.LoseLinkReply(1, err);
    HOLDFAST_ASSERT_OK(a->writer->Append({Note(static_cast<uint32_t>(err))}));
  }
  EXPECT_EQ(w.Notes(), (Numbers{EEXIST, EIO, ENOENT, ESTALE}));
  StreamState state;
  w.Notes(&state);
  EXPECT_EQ(state.next_seq, 5u);
}

TEST(Stream, FailedLinkIsTriedOnceMoreThenReported) {
  World w;
  auto a = w.ClaimOk(1);
  w.fs.FailOperation("link", 1, EIO);
  HOLDFAST_ASSERT_OK(a->writer->Append({Note(1)}));
  w.fs.FailOperation("link", 1, EIO);
  w.fs.FailOperation("link", 2, EIO);
  EXPECT_EQ(a->writer->Append({Note(2)}).code(), ErrorCode::kTransient);
  HOLDFAST_ASSERT_OK(a->writer->Append({Note(2)}));
  EXPECT_EQ(w.Notes(), (Numbers{1, 2}));
}

// The reply is lost and the name cannot even be opened (negative dentry): unknown for now. The same records again: counted once.
TEST(Stream, UnknownOutcomeIsResolvedByTheNextAppend) {
  World w;
  auto a = w.ClaimOk(1);
  w.fs.SetNegativeLookups(1);
  EXPECT_EQ(w.fs.Open(w.layout.Slot(kStream, 1)).code(), ErrorCode::kNotFound);  // plants the negative entry
  w.fs.LoseLinkReply(1, EIO);
  EXPECT_EQ(a->writer->Append({Note(1)}).code(), ErrorCode::kTransient);
  HOLDFAST_ASSERT_OK(a->writer->Append({Note(1)}));
  HOLDFAST_ASSERT_OK(a->writer->Append({Note(2)}));
  StreamState state;
  w.Notes(&state);
  EXPECT_EQ(state.stale, 0u);
  auto notes = w.Notes();
  notes.erase(std::unique(notes.begin(), notes.end()), notes.end());
  EXPECT_EQ(notes, (Numbers{1, 2}));
}

TEST(Stream, HiddenSlotIsReadLater) {
  World w;
  auto a = w.ClaimOk(1);
  StreamReader reader(w.fs, w.layout, kStream, w.job);
  HOLDFAST_ASSERT_OK(reader.Poll(nullptr));
  w.fs.SetNegativeLookups(2);
  EXPECT_FALSE(w.fs.Open(w.layout.Slot(kStream, 1)).ok());
  HOLDFAST_ASSERT_OK(a->writer->Append({Note(1)}));
  for (int i = 0; i < 2; ++i) {
    HOLDFAST_ASSERT_OK(reader.Poll(nullptr));
    EXPECT_EQ(reader.state().next_seq, 1u);
  }
  HOLDFAST_ASSERT_OK(reader.Poll(nullptr));
  EXPECT_EQ(reader.state().next_seq, 2u);
}

// B claims while A is about to link its claim: A folds B's claim, asks again, and becomes the next owner.
TEST(Stream, ClaimantsRace) {
  for (const bool yield : {false, true}) {
    World w;
    HOLDFAST_ASSERT_OK(w.fs.MakeDirs(w.layout.StreamDir(kStream)));
    std::unique_ptr<World::Owner> b;
    w.fs.SetHook([&](const std::string& op, const std::string&) -> Status {
      if (op != "link") return OkStatus();
      w.fs.SetHook(nullptr);
      b = w.ClaimOk(2);
      return OkStatus();
    });
    int asked = 0;
    auto a = w.Claim(1, [&](const Claim& c) -> Status {
      EXPECT_EQ(c.node, "node2");
      ++asked;
      return yield ? Status(Stopped("somebody is at work")) : OkStatus();
    });
    EXPECT_EQ(asked, 1);
    EXPECT_EQ(a.ok(), !yield);
    EXPECT_EQ(b->writer->Append({Note(1)}).code(), yield ? ErrorCode::kOk : ErrorCode::kFenced);
    EXPECT_TRUE(!a.ok() || (*a)->writer->epoch() == 2);
  }
}

TEST(Stream, TwinIsForked) {
  World w;
  auto a = w.ClaimOk(1);
  StreamState state;
  w.Notes(&state);
  w.Forge(1, 1, NonceOf(1), state.tail, {Note(9)});
  const Status s = a->writer->Append({Note(1)});
  EXPECT_EQ(s.code(), ErrorCode::kInternal);
  EXPECT_NE(s.error().message.find("FORKED"), std::string::npos);
  EXPECT_EQ(a->writer->Append({Note(1)}).code(), ErrorCode::kFenced);
  EXPECT_EQ(w.Notes(), (Numbers{9}));
}

// A buggy zombie that retries blindly wins a number: its record does not count, and the owner goes on behind it.
TEST(Stream, StaleRecordsAreDroppedAndPassed) {
  World w;
  auto a = w.ClaimOk(1);
  auto b = w.ClaimOk(2);
  StreamState state;
  w.Notes(&state);
  w.Forge(state.next_seq, 1, NonceOf(1), state.tail, {Note(66), Note(67)});
  HOLDFAST_ASSERT_OK(b->writer->Append({Note(1)}));
  EXPECT_EQ(w.Notes(&state), (Numbers{1}));
  EXPECT_EQ(state.stale, 2u);
  EXPECT_EQ(state.next_seq, 4u);
}

TEST(Stream, FullDiskCommitsNothingAndTheWriterGoesOn) {
  for (const bool late : {false, true}) {
    World w;
    auto a = w.ClaimOk(1);
    HOLDFAST_ASSERT_OK(a->writer->Append({Note(1)}));
    w.fs.SetLateWriteErrors(late);
    w.fs.SetFreeBytes(3000);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(a->writer->Append({Note(2)}).code(), ErrorCode::kResourceExhausted);
    EXPECT_TRUE(w.fs.List(w.layout.TmpDir(NonceOf(1)))->empty()) << "nothing left behind";
    w.fs.SetFreeBytes(1u << 30);
    HOLDFAST_ASSERT_OK(a->writer->Append({Note(3)}));
    EXPECT_EQ(w.Notes(), (Numbers{1, 3}));
  }
}

// ENOSPC or EIO at any one operation of an append: an error or a success, both true, and the writer goes on.
TEST(Stream, AnyOneOperationMayFail) {
  for (const int err : {ENOSPC, EIO, ESTALE}) {
    for (uint64_t n = 1; n <= 8; ++n) {
      World w;
      auto a = w.ClaimOk(1);
      w.fs.FailOperation(n, err);
      const Status first = a->writer->Append({Note(1)});
      Numbers notes = w.Notes();
      EXPECT_TRUE(!first.ok() || notes == Numbers{1}) << n;
      HOLDFAST_ASSERT_OK(a->writer->Append({Note(2)}));
      notes = w.Notes();
      EXPECT_EQ(notes.back(), 2u);
      EXPECT_LE(notes.size(), 2u);
    }
  }
}

TEST(Stream, MisplacedSlotsAreRefused) {
  World w;
  auto a = w.ClaimOk(1);
  HOLDFAST_ASSERT_OK(a->writer->Append({Note(1)}));
  Digest prev;
  HOLDFAST_ASSERT_OK(ReadSlot(w.fs, w.layout, kStream, 1, w.job, &prev));
  EXPECT_EQ(ReadSlot(w.fs, w.layout, kStream, 1, NonceOf(0x78), &prev).code(), ErrorCode::kCorrupt);  // another job
  HOLDFAST_ASSERT_OK(w.fs.Link(w.layout.Slot(kStream, 1), w.layout.Slot(kStream, 2)));
  EXPECT_EQ(ReadSlot(w.fs, w.layout, kStream, 2, w.job, &prev).code(), ErrorCode::kCorrupt);  // another number
  HOLDFAST_ASSERT_OK(w.fs.MakeDirs(w.layout.StreamDir("stage.04")));
  HOLDFAST_ASSERT_OK(w.fs.Link(w.layout.Slot(kStream, 1), w.layout.Slot("stage.04", 1)));
  EXPECT_EQ(ReadSlot(w.fs, w.layout, "stage.04", 1, w.job, &prev).code(), ErrorCode::kCorrupt);  // another stream
  EXPECT_EQ(ReadSlot(w.fs, w.layout, kStream, 7, w.job, &prev).code(), ErrorCode::kNotFound);
}

TEST(Stream, BrokenChainIsRefused) {
  World w;
  auto a = w.ClaimOk(1);
  w.Forge(1, 1, NonceOf(1), DigestOf(5), {Note(1)});
  StreamReader reader(w.fs, w.layout, kStream, w.job);
  const Status s = reader.Poll(nullptr);
  EXPECT_EQ(s.code(), ErrorCode::kCorrupt);
  EXPECT_NE(s.error().message.find("chain"), std::string::npos);
}

// ---- a server that lost what it had acknowledged ----

bool IsRegression(const Status& s) {
  return s.code() == ErrorCode::kCorrupt && s.error().message.find("LEDGER_REGRESSION") != std::string::npos &&
         s.error().message.find("jobctl fsck /run --repair") != std::string::npos;
}

TEST(StreamRegression, ReaderMissesWhatItFolded) {
  for (uint32_t gone = 0; gone < 4; ++gone) {
    World w;
    auto a = w.ClaimOk(1);
    StreamReader reader(w.fs, w.layout, kStream, w.job);
    for (uint32_t i = 1; i < 4; ++i) HOLDFAST_ASSERT_OK(a->writer->Append({Note(i)}));
    HOLDFAST_ASSERT_OK(reader.Poll(nullptr));
    HOLDFAST_ASSERT_OK(w.fs.Unlink(w.layout.Slot(kStream, gone)));
    const Status s = reader.Poll(nullptr);
    EXPECT_TRUE(IsRegression(s)) << "slot " << gone;
    EXPECT_NE(s.error().message.find(w.layout.Slot(kStream, gone)), std::string::npos) << s.error().message;
  }
}

TEST(StreamRegression, ReaderMissesTheWholeStream) {
  World w;
  auto a = w.ClaimOk(1);
  HOLDFAST_ASSERT_OK(a->reader.Poll(nullptr));
  HOLDFAST_ASSERT_OK(w.fs.RemoveTree(w.layout.LogDir()));
  EXPECT_TRUE(IsRegression(a->reader.Poll(nullptr)));
}

// Listings are no snapshots and may be old.
TEST(StreamRegression, AListingThatLacksANameIsNotBelieved) {
  class Forgetful final : public ForwardingFileSystem {
   public:
    using ForwardingFileSystem::ForwardingFileSystem;
    Result<std::vector<std::string>> List(const std::string&) override { return std::vector<std::string>{}; }
  };
  World w;
  auto a = w.ClaimOk(1);
  Forgetful forgetful(w.fs);
  StreamReader reader(w.fs, w.layout, kStream, w.job), other(forgetful, w.layout, kStream, w.job);
  HOLDFAST_ASSERT_OK(reader.Poll(nullptr));
  StreamWriter::Options options = w.OptionsOf(2);
  HOLDFAST_ASSERT_OK(StreamWriter::Open(forgetful, w.layout, w.clock, &other, nullptr, options));
  EXPECT_EQ(other.state().next_seq, 2u);
  HOLDFAST_EXPECT_OK(other.Poll(nullptr));
}

class HandClock final : public Clock {
 public:
  uint64_t MonotonicNs() const override { return now; }
  uint64_t WallNs() const override { return now; }
  void SleepMs(uint64_t) override {}
  uint64_t now = 1;
};

struct Rebooting : World {  // an owner with two notes, whose server may forget
  HandClock hand;
  StreamReader reader{fs, layout, kStream, job};
  std::unique_ptr<StreamWriter> writer;

  Rebooting() {
    auto opened = StreamWriter::Open(fs, layout, hand, &reader, nullptr, OptionsOf(1));
    EXPECT_TRUE(opened.ok());
    writer = std::move(opened).value();
    for (uint32_t i = 1; i <= 2; ++i) HOLDFAST_EXPECT_OK(writer->Append({Note(i)}));
  }
  void Wait() { hand.now += 10'000'000'000; }
};

TEST(StreamRegression, OwnerLooksBackAfterAWhile) {
  Rebooting w;
  w.Wait();
  HOLDFAST_ASSERT_OK(w.writer->Append({Note(3)}));
  HOLDFAST_ASSERT_OK(w.fs.Unlink(w.layout.Slot(kStream, 3)));
  w.Wait();
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(IsRegression(w.writer->Append({Note(4)})));
  EXPECT_EQ(w.Notes(), (Numbers{1, 2})) << "and leaves no gap";
}

TEST(StreamRegression, OwnerFindsHisLastSlotDamaged) {
  Rebooting w;
  w.fs.Corrupt(w.layout.Slot(kStream, 2), 100, 0x10);
  w.Wait();
  EXPECT_TRUE(IsRegression(w.writer->Append({Note(3)})));
}

// The server forgets while the commit waits for it: the new slot lies behind a gap, and is not acknowledged.
TEST(StreamRegression, OwnerLooksBackAfterACommitThatTookLong) {
  Rebooting w;
  w.fs.SetHook([&](const std::string& op, const std::string&) -> Status {
    if (op != "link") return OkStatus();
    w.fs.SetHook(nullptr);
    w.Wait();
    return w.fs.Unlink(w.layout.Slot(kStream, 2));
  });
  EXPECT_TRUE(IsRegression(w.writer->Append({Note(3)})));
  StreamReader fresh(w.fs, w.layout, kStream, w.job);
  EXPECT_EQ(fresh.Poll(nullptr).code(), ErrorCode::kCorrupt);
}

// A repair buries the last slot under a claim of its own: its former owner was replaced, no more.
TEST(StreamRegression, WhoWasReplacedIsFencedWhateverLiesBehind) {
  Rebooting w;
  auto b = w.ClaimOk(2);
  HOLDFAST_ASSERT_OK(w.fs.Unlink(w.layout.Slot(kStream, 2)));
  w.Wait();
  EXPECT_EQ(w.writer->Append({Note(3)}).code(), ErrorCode::kFenced);
}

TEST(StreamRegression, NoAnswerIsNoFinding) {
  class Deaf final : public ForwardingFileSystem {
   public:
    using ForwardingFileSystem::ForwardingFileSystem;
    Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
      if (deaf) return ErrnoError(ESTALE, "opening " + path);
      return ForwardingFileSystem::Open(path);
    }
    bool deaf = false;
  };
  World w;
  HandClock hand;
  Deaf fs(w.fs);
  StreamReader reader(fs, w.layout, kStream, w.job);
  auto writer = StreamWriter::Open(fs, w.layout, hand, &reader, nullptr, w.OptionsOf(1));
  HOLDFAST_ASSERT_OK(writer);
  fs.deaf = true;
  hand.now += 10'000'000'000;
  HOLDFAST_EXPECT_OK((*writer)->Append({Note(1)}));
}

// ---- power cuts ----

// Runs a process that is cut off at operation `cut`, crashes the server, and looks at what is left. Returns what is wrong, or "".
std::string CutAt(uint64_t cut, uint64_t seed, bool lying_disk, uint64_t* ops) {
  World w(seed);
  w.fs.SetLyingSync(lying_disk);
  HOLDFAST_EXPECT_OK(EnsureFormat(w.fs, w.layout, NonceOf(1)));
  const uint64_t before = w.fs.ops();
  uint64_t n = 0;
  w.fs.SetHook([&](const std::string&, const std::string&) -> Status { return ++n >= cut ? Status(Internal("dead")) : OkStatus(); });
  Numbers acknowledged;
  auto a = w.Claim(1);
  for (uint32_t i = 1; a.ok() && i <= 4; ++i) {
    if (!(*a)->writer->Append({Note(i)}).ok()) break;
    acknowledged.push_back(i);
  }
  *ops = w.fs.ops() - before;
  w.fs.SetHook(nullptr);
  w.fs.Crash();
  w.fs.SetLyingSync(false);

  StreamReader reader(w.fs, w.layout, kStream, w.job);
  Numbers found;
  const Status s = reader.Poll([&](const Record& r, const Slot&) {
    if (r.key.cls == RecordClass::kPhase) found.push_back(r.key.a);
    return OkStatus();
  });
  if (!s.ok()) return s.error().message;
  if (found.size() < acknowledged.size() || !std::equal(acknowledged.begin(), acknowledged.end(), found.begin())) return "an acknowledged slot is gone";
  if (found.size() > acknowledged.size() + 1) return "more slots than were tried";
  auto b = w.Claim(2);
  if (!b.ok()) return b.error().message;
  const Status again = (*b)->writer->Append({Note(50)});
  return again.ok() ? "" : again.error().message;
}

TEST(StreamCrash, PowerCutAtEveryOperationLosesNothingAcknowledged) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    uint64_t ops = 1;
    for (uint64_t cut = 1; cut <= ops + 1; ++cut) ASSERT_EQ(CutAt(cut, seed, false, &ops), "") << "seed " << seed << ", cut at operation " << cut;
    EXPECT_GT(ops, 30u);
  }
}

// The same on a disk that only pretends to sync must be noticed, or the test above proves nothing.
TEST(StreamCrash, TheAlarmRingsOnALyingDisk) {
  int alarms = 0;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    uint64_t ops = 1;
    for (uint64_t cut = 1; cut <= ops + 1; ++cut) alarms += CutAt(cut, seed, true, &ops).empty() ? 0 : 1;
  }
  EXPECT_GT(alarms, 20);
}

// ---- what a kernel's caches hide ----

// A client whose cached listing lacks a name that was linked meanwhile, or whose lookup of one name fails for a while.
class Forgetful : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;
  std::string unlisted, hidden;
  int hidden_for = 0;   // opens
  Result<std::vector<std::string>> List(const std::string& path) override {
    auto names = fs_.List(path);
    if (names.ok()) std::erase(*names, unlisted);
    return names;
  }
  Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
    if (path == hidden && hidden_for-- > 0) return NotFound(path + ": hidden");
    return fs_.Open(path);
  }
};

// Found by holdfast-sim, seed 14090: both listings came from one cache, and the reader called a slot missing that it could have opened.
TEST(StreamCaches, ANameThatTwoListingsLackIsOpenedBeforeItCountsAsMissing) {
  World w;
  const auto owner = w.ClaimOk(1);
  for (uint32_t i = 0; i < 4; ++i) HOLDFAST_ASSERT_OK(owner->writer->Append({Note(i)}));
  Forgetful fs(w.fs);
  fs.unlisted = "00000002.seg";
  StreamReader reader(fs, w.layout, kStream, w.job);
  HOLDFAST_EXPECT_OK(reader.Poll(nullptr));
  EXPECT_EQ(reader.state().next_seq, 5u);

  HOLDFAST_ASSERT_OK(w.fs.Unlink(w.layout.Slot(kStream, 2)));
  StreamReader strict(w.fs, w.layout, kStream, w.job);
  EXPECT_EQ(strict.Poll(nullptr).code(), ErrorCode::kCorrupt);
}

// Found by holdfast-sim, seed 44920: a worker that could not open a listed slot gave up four times within two seconds, and the job failed.
TEST(StreamCaches, AHiddenSlotIsWaitedForByWhoeverCan) {
  World w;
  { const auto former = w.ClaimOk(1); }
  Forgetful fs(w.fs);
  fs.hidden = w.layout.Slot(kStream, 0);
  uint64_t waited_ms = 0;
  StreamWriter::Options patient = w.OptionsOf(2), busy = w.OptionsOf(3);
  patient.wait = [&](uint64_t ms) { waited_ms += ms; };
  fs.hidden_for = 1000;
  StreamReader early(fs, w.layout, kStream, w.job);
  EXPECT_EQ(StreamWriter::Open(fs, w.layout, w.clock, &early, nullptr, busy).code(), ErrorCode::kTransient);
  fs.hidden_for = 20;
  StreamReader reader(fs, w.layout, kStream, w.job);
  const auto writer = StreamWriter::Open(fs, w.layout, w.clock, &reader, nullptr, patient);
  HOLDFAST_ASSERT_OK(writer);
  EXPECT_EQ((*writer)->epoch(), 2u);
  EXPECT_GT(waited_ms, 0u);
  EXPECT_LT(waited_ms, 35'000u);
}

}  // namespace
}  // namespace holdfast
