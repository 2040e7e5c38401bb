// SPDX-License-Identifier: Apache-2.0
//
// Roots: what may become one, what ROOT says, and commits on servers without hard links.
#include "ledger/cluster/root.h"

#include <gmock/gmock.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <thread>

#include "ledger/base/sim_file_system.h"
#include "ledger/cluster/queue.h"
#include "ledger/fold/run_state.h"
#include "ledger/format/sealed_text.h"
#include "ledger/log/publish.h"
#include "ledger/log/tombstone.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

using testing::HasSubstr;

const RootLayout kRoot("/root");

void Write(FileSystem& fs, const std::string& path, const std::string& text) {
  HOLDFAST_ASSERT_OK(fs.MakeDirs(DirName(path)));
  const auto file = fs.Create(path, 0644);
  HOLDFAST_ASSERT_OK(file);
  HOLDFAST_ASSERT_OK((*file)->Append(AsBytes(text)));
  HOLDFAST_ASSERT_OK((*file)->Sync());
  HOLDFAST_ASSERT_OK((*file)->Close());
}

std::string Read(FileSystem& fs, const std::string& path) {
  const auto bytes = fs.ReadFile(path);
  return bytes.ok() ? std::string(AsText(*bytes)) : bytes.error().message;
}

// No link(2) on this server: as vfat, some FUSE file systems and appliances answer.
void ForbidLinks(SimFileSystem* fs) {
  fs->SetHook([](const std::string& op, const std::string&) -> Status { return op == "link" ? ErrnoError(EPERM, "linking") : OkStatus(); });
}

TEST(Root, NamesAndIds) {
  for (const char* good : {"a", "spark-1", "n1.lan", "A_9", "0"}) HOLDFAST_EXPECT_OK(CheckName("--name", good));
  for (const char* bad : {"", ".", "..", "-x", "a/b", "a b", "\xc3\xa4", "a\n"}) {
    const Status s = CheckName("--name", bad);
    EXPECT_EQ(s.code(), ErrorCode::kInvalidArgument) << bad;
    EXPECT_THAT(s.error().message, HasSubstr("--name"));
  }
  EXPECT_EQ(JobIdOf(NonceOf(0xab)), "abababababab");
  EXPECT_EQ(kRoot.JobLog("abc", "n1"), "/root/jobs/abc/logs/n1.log");
}

TEST(Root, IsMadeOnceAndRead) {
  SimFileSystem fs;
  EXPECT_EQ(ReadRoot(fs, kRoot).code(), ErrorCode::kNotFound);
  const auto made = EnsureRoot(fs, kRoot, NonceOf(1));
  HOLDFAST_ASSERT_OK(made);
  EXPECT_EQ(made->commit, RootInfo::Commit::kLink);
  const auto again = EnsureRoot(fs, kRoot, NonceOf(2));
  HOLDFAST_ASSERT_OK(again);
  EXPECT_EQ(again->uuid, made->uuid);
  EXPECT_THAT(*fs.List("/root/tmp/" + NonceOf(1).Hex()), testing::IsEmpty());  // the trials left nothing
  fs.Crash();
  EXPECT_EQ(ReadRoot(fs, kRoot)->uuid, made->uuid);
  for (const char* dir : {"/root/log", "/root/jobs", "/root/beats"}) EXPECT_TRUE(fs.Stat(dir)->is_directory) << dir;
}

TEST(Root, TwoStartersAgree) {
  TempDir dir;
  PosixFileSystem fs;
  const RootLayout layout(dir.path() + "/root");
  std::vector<Nonce> seen(6);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < seen.size(); ++i) {
    threads.emplace_back([&, i] {
      const auto root = EnsureRoot(fs, layout, NonceOf(static_cast<uint8_t>(i + 1)));
      HOLDFAST_ASSERT_OK(root);
      seen[i] = root->uuid;
    });
  }
  for (std::thread& t : threads) t.join();
  for (const Nonce& uuid : seen) EXPECT_EQ(uuid, seen[0]);
  EXPECT_NE(seen[0], Nonce{});
}

TEST(Root, WhatIsSomethingElseIsLeftAlone) {
  SimFileSystem fs;
  HOLDFAST_ASSERT_OK(EnsureFormat(fs, RunLayout("/run"), NonceOf(1)));
  const auto run = EnsureRoot(fs, RootLayout("/run"), NonceOf(1));
  EXPECT_EQ(run.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(run.error().message, HasSubstr("run directory"));
  Write(fs, "/notes.txt", "x");
  EXPECT_THAT(EnsureRoot(fs, RootLayout("/notes.txt"), NonceOf(1)).error().message, HasSubstr("is not a directory"));
  Write(fs, "/home/thesis.tex", "x");
  const auto home = EnsureRoot(fs, RootLayout("/home"), NonceOf(1));
  EXPECT_EQ(home.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(home.error().message, HasSubstr("thesis.tex"));
  EXPECT_EQ(*fs.List("/home"), (std::vector<std::string>{"thesis.tex"}));
  // Leftovers of a start that was cut short, keys made in advance, and what servers put into an export.
  for (const char* path : {"/root/keys/n1.secret", "/root/tmp/x", "/root/lost+found/y", "/root/.snapshot/z"}) Write(fs, path, "x");
  HOLDFAST_EXPECT_OK(EnsureRoot(fs, kRoot, NonceOf(1)));
}

TEST(Root, NotWritableIsSaidOnce) {
  for (const char* op : {"mkdir", "create"}) {
    SimFileSystem fs;
    fs.SetHook([&](const std::string& what, const std::string&) -> Status { return what == op ? ErrnoError(EROFS, "making something") : OkStatus(); });
    const auto root = EnsureRoot(fs, kRoot, NonceOf(1));
    EXPECT_EQ(root.code(), ErrorCode::kInvalidArgument) << op;
    EXPECT_THAT(root.error().message, HasSubstr("/root: cannot be written")) << op;
    EXPECT_THAT(root.error().message, HasSubstr("Read-only file system")) << op;
  }
  SimFileSystem full;
  full.SetFreeBytes(3);
  EXPECT_EQ(EnsureRoot(full, kRoot, NonceOf(1)).code(), ErrorCode::kResourceExhausted);
}

TEST(Root, EveryFlippedBitOfRootIsFound) {
  SimFileSystem fs;
  HOLDFAST_ASSERT_OK(EnsureRoot(fs, kRoot, NonceOf(1)));
  const uint64_t size = fs.Stat("/root/ROOT")->size;
  for (uint64_t at = 0; at < size; ++at) {
    fs.Corrupt("/root/ROOT", at, 1);
    EXPECT_EQ(ReadRoot(fs, kRoot).code(), ErrorCode::kCorrupt) << at;
    EXPECT_EQ(EnsureRoot(fs, kRoot, NonceOf(1)).code(), ErrorCode::kCorrupt) << at;
    fs.Corrupt("/root/ROOT", at, 1);
  }
  HOLDFAST_EXPECT_OK(ReadRoot(fs, kRoot));
}

TEST(Root, NewerFormatsAreRefusedPolitely) {
  const auto refused = [](const SealedText& text) {
    SimFileSystem fs;
    Write(fs, "/root/ROOT", RenderSealedText("holdfast root directory", text));
    return ReadRoot(fs, kRoot).code();
  };
  SealedText text;
  text.more = {{"uuid", NonceOf(1).Hex()}, {"commit", "link"}};
  EXPECT_EQ(refused(text), ErrorCode::kOk);
  text.more["nickname"] = "unknown lines are no harm";
  text.compat = 4;
  EXPECT_EQ(refused(text), ErrorCode::kOk);
  SealedText newer = text, unknown = text, other = text, nameless = text;
  newer.number = 2;
  unknown.incompat = 1;
  other.more["commit"] = "put-if-absent";
  nameless.more.erase("uuid");
  EXPECT_EQ(refused(newer), ErrorCode::kUnsupported);
  EXPECT_EQ(refused(unknown), ErrorCode::kUnsupported);
  EXPECT_EQ(refused(other), ErrorCode::kUnsupported);
  EXPECT_EQ(refused(nameless), ErrorCode::kCorrupt);
}

// ---- without hard links ----

TEST(Root, AServerWithoutHardLinksIsRecorded) {
  SimFileSystem fs;
  ForbidLinks(&fs);
  const auto made = EnsureRoot(fs, kRoot, NonceOf(1));
  HOLDFAST_ASSERT_OK(made);
  EXPECT_EQ(made->commit, RootInfo::Commit::kRename);
  EXPECT_TRUE(fs.Stat("/root/ROOT")->is_directory);
  fs.Crash();
  const auto through = OpenFileSystemFor(fs, *made);
  EXPECT_EQ(ReadRoot(fs, kRoot)->commit, RootInfo::Commit::kRename);
  EXPECT_EQ(ReadRoot(*through, kRoot)->uuid, made->uuid);
  EXPECT_EQ(EnsureRoot(fs, kRoot, NonceOf(2))->uuid, made->uuid);

  StillClock clock;
  Queue queue(*through, kRoot, made->uuid);
  QueueRecord submit;
  submit.job = "0123456789ab";
  Incarnation self;
  self.nonce = NonceOf(3);
  HOLDFAST_ASSERT_OK(queue.Append(clock, self, submit, nullptr));
  Queue fresh(*through, kRoot, made->uuid);
  HOLDFAST_ASSERT_OK(fresh.Refresh());
  EXPECT_EQ(fresh.jobs().size(), 1u);
}

TEST(Root, ANodeWhoseMountCannotLinkIsToldSo) {
  SimFileSystem fs;
  HOLDFAST_ASSERT_OK(EnsureRoot(fs, kRoot, NonceOf(1)));
  ForbidLinks(&fs);
  const auto other = EnsureRoot(fs, kRoot, NonceOf(2));
  EXPECT_EQ(other.code(), ErrorCode::kUnsupported);
  EXPECT_THAT(other.error().message, HasSubstr("same export"));
}

TEST(Root, AServerWithNeitherIsRefused) {
  SimFileSystem fs;
  fs.SetHook([](const std::string& op, const std::string&) -> Status { return op == "link" || op == "rename" ? ErrnoError(EPERM, op) : OkStatus(); });
  const auto root = EnsureRoot(fs, kRoot, NonceOf(1));
  EXPECT_EQ(root.code(), ErrorCode::kUnsupported);
  EXPECT_THAT(root.error().message, HasSubstr("neither hard links nor"));
  EXPECT_EQ(ReadRoot(fs, kRoot).code(), ErrorCode::kNotFound);
}

// In a process of its own, because the variable is read once.
TEST(RootDeathTest, TheFailPointSaysNoHardLinks) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  TempDir dir;
  ::setenv("HOLDFAST_TEST_ROOT", (dir.path() + "/root").c_str(), 0);
  ::setenv("HOLDFAST_FAIL", "root.link_probe=eio", 1);
  EXPECT_EXIT(
      {
        PosixFileSystem fs;
        const RootLayout layout(::getenv("HOLDFAST_TEST_ROOT"));
        const auto made = EnsureRoot(fs, layout, NonceOf(1));
        const bool fell_back = made.ok() && made->commit == RootInfo::Commit::kRename && ReadRoot(fs, layout).ok();
        std::exit(fell_back ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
  ::unsetenv("HOLDFAST_FAIL");
  ::unsetenv("HOLDFAST_TEST_ROOT");
}

// ---- the renaming file system ----

TEST(Renaming, ACommittedNameBehavesLikeAFile) {
  TempDir dir;
  PosixFileSystem posix;
  SimFileSystem sim;
  for (const bool real : {true, false}) {
    FileSystem& inner = real ? static_cast<FileSystem&>(posix) : sim;
    const std::string top = real ? dir.path() : "/d";
    const auto fs = MakeRenamingFileSystem(inner);
    const std::string slot = top + "/00000000.seg";
    EXPECT_EQ(fs->Stat(slot).code(), ErrorCode::kNotFound);
    EXPECT_EQ(fs->Open(slot).code(), ErrorCode::kNotFound);
    Write(*fs, top + "/one", "first");
    Write(*fs, top + "/two", "second");
    HOLDFAST_ASSERT_OK(fs->Link(top + "/one", slot));
    EXPECT_EQ(fs->Link(top + "/two", slot).code(), ErrorCode::kAlreadyExists);
    EXPECT_EQ(Read(*fs, slot), "first");
    EXPECT_EQ(fs->Stat(slot)->size, 5u);
    EXPECT_FALSE(fs->Stat(slot)->is_directory);
    EXPECT_TRUE(inner.Stat(slot)->is_directory);
    EXPECT_EQ(*fs->List(top), (std::vector<std::string>{"00000000.seg"}));  // the loser's private file is gone too
    Write(*fs, top + "/three", "third");
    HOLDFAST_ASSERT_OK(fs->Replace(top + "/three", slot));
    EXPECT_EQ(Read(*fs, slot), "third");
    HOLDFAST_ASSERT_OK(fs->RenameExclusive(slot, top + "/00000001.seg"));
    EXPECT_EQ(Read(*fs, top + "/00000001.seg"), "third");
    HOLDFAST_ASSERT_OK(fs->Unlink(top + "/00000001.seg"));
    EXPECT_EQ(*fs->List(top), (std::vector<std::string>{}));
    EXPECT_EQ(fs->Unlink(slot).code(), ErrorCode::kNotFound);
  }
}

TEST(Renaming, OtherNamesPassThrough) {
  SimFileSystem sim;
  const auto fs = MakeRenamingFileSystem(sim);
  Write(*fs, "/d/model.safetensors", "x");
  Write(*fs, "/d/calib/data", "y");  // a directory of the user with such a file in it
  HOLDFAST_ASSERT_OK(fs->Link("/d/model.safetensors", "/d/again.safetensors"));
  EXPECT_EQ(Read(sim, "/d/again.safetensors"), "x");
  EXPECT_TRUE(fs->Exists("/d/model.safetensors").value());
  EXPECT_TRUE(fs->Stat("/d/calib")->is_directory);
  HOLDFAST_ASSERT_OK(sim.Link("/d/model.safetensors", "/d/00000000.seg"));  // committed by link(2), read all the same
  EXPECT_EQ(Read(*fs, "/d/00000000.seg"), "x");
  Write(*fs, "/d/late", "z");
  EXPECT_EQ(fs->Link("/d/late", "/d/00000000.seg").code(), ErrorCode::kAlreadyExists);
  EXPECT_EQ(Read(*fs, "/d/00000000.seg"), "x");
  HOLDFAST_ASSERT_OK(fs->Unlink("/d/00000000.seg"));
}

TEST(Renaming, TwoThreadsOneWinner) {
  TempDir dir;
  PosixFileSystem posix;
  constexpr int kNames = 100, kThreads = 3;
  std::vector<std::atomic<int>> winners(kNames);
  std::vector<std::atomic<int>> owner(kNames);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const auto fs = MakeRenamingFileSystem(posix);
      const std::string tmp = dir.path() + "/tmp" + std::to_string(t);
      for (int i = 0; i < kNames; ++i) {
        const std::string name = dir.path() + "/" + std::to_string(i) + ".seg";
        PublishOptions options;
        HOLDFAST_ASSERT_OK(fs->MakeDirs(tmp));
        options.tmp_dir = tmp;
        const std::string text = "thread " + std::to_string(t);
        const Status s = Publish(*fs, name, {AsBytes(text)}, options);
        EXPECT_TRUE(s.ok() || s.code() == ErrorCode::kAlreadyExists) << s.error().message;
        if (s.ok()) ++winners[static_cast<size_t>(i)], owner[static_cast<size_t>(i)] = t;
      }
      EXPECT_THAT(*posix.List(tmp), testing::IsEmpty());
    });
  }
  for (std::thread& t : threads) t.join();
  const auto fs = MakeRenamingFileSystem(posix);
  for (size_t i = 0; i < kNames; ++i) {
    EXPECT_EQ(winners[i], 1) << i;
    EXPECT_EQ(Read(*fs, dir.path() + "/" + std::to_string(i) + ".seg"), "thread " + std::to_string(owner[i])) << i;
  }
}

TEST(Renaming, LostReplies) {
  SimFileSystem sim;
  const auto fs = MakeRenamingFileSystem(sim);
  Write(*fs, "/d/one", "first");
  std::string box;
  sim.SetHook([&](const std::string& op, const std::string& path) -> Status {
    if (op == "replace") box = DirName(path);
    if (op != "rename") return OkStatus();
    sim.SetHook(nullptr);
    HOLDFAST_TRY(sim.RenameExclusive(box, path));  // it happened, but nobody was told
    return ErrnoError(EIO, "renaming");
  });
  HOLDFAST_EXPECT_OK(fs->Link("/d/one", "/d/0.seg"));
  EXPECT_EQ(Read(*fs, "/d/0.seg"), "first");

  // It did not happen, and nobody knows: no claim that the name is taken, and the file stays for a rename that is still on its way.
  Write(*fs, "/d/two", "second");
  sim.FailOperation("rename", 1, EIO);
  const Status unclear = fs->Link("/d/two", "/d/1.seg");
  EXPECT_FALSE(unclear.ok());
  EXPECT_NE(unclear.code(), ErrorCode::kAlreadyExists);
  HOLDFAST_ASSERT_OK(sim.RenameExclusive("/d/two.box", "/d/1.seg"));
  EXPECT_EQ(Read(*fs, "/d/1.seg"), "second");
}

// Publishes four files, is cut off at operation `cut`, loses power. Returns what is wrong with what is left, or "".
std::string CutAt(uint64_t cut, uint64_t seed, bool skip_sync, uint64_t* ops) {
  SimFileSystem sim(seed);
  const auto fs = MakeRenamingFileSystem(sim);
  HOLDFAST_EXPECT_OK(fs->MakeDirs("/d/tmp"));
  HOLDFAST_EXPECT_OK(fs->SyncDir("/d"));
  HOLDFAST_EXPECT_OK(fs->SyncDir("/"));
  const uint64_t before = sim.ops();
  uint64_t n = 0;
  sim.SetHook([&](const std::string& op, const std::string&) -> Status {
    if (op == "link") return ErrnoError(EPERM, "linking");
    return ++n >= cut ? Status(Internal("dead")) : OkStatus();
  });
  PublishOptions options;
  options.tmp_dir = "/d/tmp";
  options.skip_sync_for_test = skip_sync;
  const Bytes content = RandomBytes(5000, 3);
  const auto path = [](int i) { return "/d/" + std::to_string(i) + ".seg"; };
  int acknowledged = 0;
  while (acknowledged < 4 && Publish(*fs, path(acknowledged), {content}, options).ok()) ++acknowledged;
  *ops = sim.ops() - before;
  sim.SetHook(nullptr);
  sim.Crash();
  for (int i = 0; i < 4; ++i) {
    const auto file = fs->ReadFile(path(i));
    if (file.code() == ErrorCode::kNotFound && i < acknowledged) return "an acknowledged file is gone";
    if (file.ok() && *file != content) return "a file is there, but not whole";
  }
  return "";
}

TEST(Renaming, PowerCutLeavesNoNameOrAWholeFile) {
  int alarms = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    uint64_t ops = 1;
    for (uint64_t cut = 1; cut <= ops + 1; ++cut) ASSERT_EQ(CutAt(cut, seed, false, &ops), "") << "seed " << seed << ", cut at " << cut;
    ops = 1;
    for (uint64_t cut = 1; cut <= ops + 1; ++cut) alarms += CutAt(cut, seed, true, &ops).empty() ? 0 : 1;
  }
  EXPECT_GT(alarms, 20);  // the test would notice a missing fsync
}

// Streams, fencing, tombstones and the fold know nothing of it.
TEST(Renaming, AWholeJobOnAServerWithoutLinks) {
  SimFileSystem sim;
  ForbidLinks(&sim);
  const auto fs = MakeRenamingFileSystem(sim);
  const RunLayout layout("/run");
  StillClock clock;
  const Nonce job = NonceOf(0x77);
  HOLDFAST_ASSERT_OK(EnsureFormat(*fs, layout, NonceOf(1)));
  const auto open = [&](StreamReader* reader, uint8_t who, std::vector<Record> with_claim) {
    StreamWriter::Options options;
    options.job = job;
    options.claim.incarnation = NonceOf(who);
    auto writer = StreamWriter::Open(*fs, layout, clock, reader, nullptr, options, std::move(with_claim));
    EXPECT_TRUE(writer.ok()) << writer.error().message;
    return std::move(writer).value();
  };
  StreamReader job_reader(*fs, layout, "job", job), a(*fs, layout, "stage.00", job), b(*fs, layout, "stage.00", job);
  JobSpec spec = SmallJob(job, 1);
  spec.tokens_sha256 = Digest{};
  (void)open(&job_reader, 1, {MakeControl({RecordClass::kJob, 0, 0, 0, 0}, spec.ToJson()), MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, SmallPlan(1, {{StageId(0), 0, 1}}).ToJson())});
  const auto first = open(&a, 2, {});
  const auto second = open(&b, 3, {});
  EXPECT_EQ(first->Append(SmallSample(0, 0, 1).ToRecords(StageId(0))).code(), ErrorCode::kFenced);
  HOLDFAST_ASSERT_OK(second->Append(SmallSample(0, 0, 1).ToRecords(StageId(0))));
  sim.Crash();
  RunState state(*fs, layout);
  HOLDFAST_ASSERT_OK(state.Refresh());
  EXPECT_NE(state.Sample(0, 0), nullptr);
  EXPECT_EQ(state.stages().at(StageId(0)).stream.epoch, 2u);

  Tombstone t;
  t.job = job;
  t.incarnation = NonceOf(9);
  t.stream = "stage.00";
  t.seq = 2;
  t.epoch = 2;
  Digest prev;
  t.prev = ReadSlot(*fs, layout, "stage.00", 1, job, &prev)->digest;
  HOLDFAST_ASSERT_OK(PlaceTombstone(*fs, layout, clock, t, /*replace=*/true));
  sim.Crash();
  RunState after(*fs, layout);
  HOLDFAST_ASSERT_OK(after.Refresh());
  EXPECT_EQ(after.Sample(0, 0), nullptr);
}

}  // namespace
}  // namespace holdfast
