// SPDX-License-Identifier: Apache-2.0
//
// Merge: whatever happens in between, the output directory is either absent or the one that an undisturbed merge makes. The
// exhaustive test ends the process at every single change of the file system, with and without a power cut, and goes on with a
// new owner.
#include "export/merge/merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <random>
#include <thread>

#include "export/merge/chunk_stream.h"
#include "export/merge/lanes.h"
#include "export/merge/metadata.h"
#include "export/merge/paged_writer.h"
#include "ledger/base/sha256_pair.h"
#include "tests/export/export_run.h"

namespace holdfast {
namespace {

using testing::HasSubstr;

constexpr uint64_t kTinyFiles = 60000;  // two files

// A run whose layers are evicted and committed; only merge is left to do.
struct Ready {
  SimFileSystem fs;
  ExportRun run;
  explicit Ready(uint64_t seed = 1, uint64_t shard_bytes = kTinyFiles,
                 const std::string& numerics = "test", const std::string& layout = "")
      : fs(seed), run(fs, "/w", LlamaPlan({}), shard_bytes) {
    run.job().numerics = numerics;
    run.job().layout = layout;
    run.AddWeights(ReadGolden("a_llama_nvfp4_src/model.safetensors"));
    run.AddSidecar("config.json", ToBytes("{\"bos_token_id\": 1, \"eos_token_id\": [2, 3], "
                                          "\"pad_token_id\": null, \"rms_norm_eps\": 1e-06}"));
    run.AddSidecar("tokenizer.json", ToBytes("{\"a\": 1}"));
    run.AddSidecar("chat_template.jinja", ToBytes("{{ x }}"));
    run.AddSidecar("hf_quant_config.json", ToBytes("{}"));
    run.Begin();
    const auto amax = ParseJson(AsText(ReadGolden("a_llama_nvfp4_src/input_amax.json")), "amax");
    run.EvictAll(*amax);
    SyncTree("/");
  }
  // What came before merge is not what these tests are about: all of it survives a power cut.
  void SyncTree(const std::string& dir) {
    EXPECT_TRUE(fs.SyncDir(dir).ok());
    const auto names = fs.List(dir);
    for (const std::string& name : *names) {
      if (fs.Stat(JoinPath(dir, name))->is_directory) SyncTree(JoinPath(dir, name));
    }
  }
};

const std::map<std::string, Bytes>& Undisturbed() {
  static const auto* out = [] {
    Ready r;
    const auto manifest = r.run.Merge();
    EXPECT_TRUE(manifest.ok()) << manifest.error().message;
    return new std::map<std::string, Bytes>(ReadTree(r.fs, "/w/out"));
  }();
  return *out;
}

std::vector<std::string> Hidden(FileSystem& fs) {
  std::vector<std::string> hidden;
  const auto names = fs.List("/w");
  for (const std::string& n : *names) {
    if (n.front() == '.') hidden.push_back(n);
  }
  return hidden;
}

void FinishAndCompare(Ready* r, const std::string& where);

TEST(Merge, WritesEverything) {
  std::vector<std::string> names;
  for (const auto& [name, bytes] : Undisturbed()) names.push_back(name);
  EXPECT_THAT(names, testing::ElementsAre("SHA256SUMS", "chat_template.jinja", "config.json",
                                          "generation_config.json", "hf_quant_config.json",
                                          "holdfast.json", "model-00001-of-00002.safetensors",
                                          "model-00002-of-00002.safetensors",
                                          "model.safetensors.index.json", "tokenizer.json"));
}

TEST(Merge, ManifestCoversEveryOtherFile) {
  const auto& out = Undisturbed();
  const auto listed = ParseManifest(AsText(out.at("SHA256SUMS")), "SHA256SUMS");
  ASSERT_TRUE(listed.ok());
  EXPECT_EQ(listed->size() + 1, out.size());
  for (const auto& [name, digest] : *listed) EXPECT_EQ(Sha256(out.at(name)), digest) << name;
}

TEST(Merge, GenerationConfigFromTheModelConfig) {
  EXPECT_EQ(AsText(Undisturbed().at("generation_config.json")),
            "{\n  \"_from_model_config\": true,\n  \"bos_token_id\": 1,\n  \"eos_token_id\": [\n   "
            " 2,\n    3\n  ]\n}\n");
}

TEST(Merge, ThreadsAndClaimsDoNotChangeAByte) {
  for (const uint32_t threads : {1u, 7u, 64u}) {
    Ready r(threads);
    for (uint32_t i = 0; i < threads % 5; ++i) {  // some claims more
      std::atomic<bool> stop{true};
      EXPECT_EQ(r.run.Merge(1, &stop).code(), ErrorCode::kStopped);
    }
    ASSERT_TRUE(r.run.Merge(threads).ok());
    EXPECT_TRUE(ReadTree(r.fs, "/w/out") == Undisturbed()) << threads;
    EXPECT_THAT(Hidden(r.fs), testing::IsEmpty());
  }
}

// A job of a cluster leaves its numerics class open. What it was computed in is in the output, and nothing else.
TEST(Merge, AClusterOfOneClassWritesTheSameBytes) {
  Ready same(1, kTinyFiles, kAnyNumerics);
  for (uint32_t sample = 0; sample < 3; ++sample) same.run.CommitSample(sample, "test");
  ASSERT_TRUE(same.run.Merge().ok());
  EXPECT_TRUE(ReadTree(same.fs, "/w/out") == Undisturbed());

  Ready mixed(1, kTinyFiles, kAnyNumerics);
  mixed.run.CommitSample(0, "test");
  mixed.run.CommitSample(1, "other");
  ASSERT_TRUE(mixed.run.Merge().ok());
  const auto out = ReadTree(mixed.fs, "/w/out");
  EXPECT_THAT(AsText(out.at("holdfast.json")), HasSubstr("\"numerics\": \"mixed: other, test\""));
  for (const auto& [name, bytes] : out) {
    EXPECT_EQ(bytes == Undisturbed().at(name), name != "holdfast.json" && name != "SHA256SUMS")
        << name;
  }
}

// Both have one job and one output; in one staging each would clear away the other's files.
TEST(Merge, TheCopyOfARunWritesInAStagingOfItsOwn) {
  Ready r;
  const RunLayout copy("/w/copy");
  ASSERT_TRUE(r.fs.MakeDirs(copy.root()).ok());
  const Bytes format = *r.fs.ReadFile(r.run.layout().FormatFile());
  const auto file = r.fs.Create(copy.FormatFile(), 0444);
  ASSERT_TRUE(file.ok() && (*file)->Append(format).ok() && (*file)->Close().ok());
  const auto ours = StagingPrefix(r.fs, r.run.layout(), r.run.job()), theirs = StagingPrefix(r.fs, copy, r.run.job());
  ASSERT_TRUE(ours.ok() && theirs.ok());
  EXPECT_NE(*ours, *theirs);
  EXPECT_EQ(*ours, *StagingPrefix(r.fs, r.run.layout(), r.run.job()));
}

// The stop arrives while files are being written: what is finished by then is kept, and the next claim takes it over.
TEST(Merge, StopsInTheMiddleOfAFile) {
  for (const uint32_t threads : {1u, 2u, 6u}) {
    Ready r(threads);
    std::atomic<bool> stop{false};
    r.fs.SetHook([&](const std::string& op, const std::string& path) -> Status {
      if (op == "append" && path.ends_with("model-00002-of-00002.safetensors")) stop = true;
      return OkStatus();
    });
    EXPECT_EQ(r.run.Merge(threads, &stop).code(), ErrorCode::kStopped);
    r.fs.SetHook(nullptr);
    EXPECT_FALSE(*r.fs.Exists("/w/out"));
    FinishAndCompare(&r, "stopped with " + std::to_string(threads) + " threads");
  }
}

// ---- the same output again, and the other layout ----

TEST(Export, AsModeloptItIsTheRunsOwnOutput) {
  for (const uint32_t threads : {1u, 2u, 8u}) {
    Ready r(threads);
    ASSERT_TRUE(r.run.Merge().ok());
    const auto log = ReadTree(r.fs, "/w/run");
    const auto again = r.run.Export("/w/again", OutputLayout::kModelopt, 1, threads);
    ASSERT_TRUE(again.ok()) << again.error().message;
    EXPECT_TRUE(ReadTree(r.fs, "/w/again") == Undisturbed()) << threads;
    EXPECT_TRUE(ReadTree(r.fs, "/w/run") == log) << "the run directory changed";
    EXPECT_TRUE(ReadTree(r.fs, "/w/out") == Undisturbed());
    EXPECT_THAT(Hidden(r.fs), testing::IsEmpty());
  }
}

// Whichever of the two a run wrote itself, both come out of it, and the same as from a run that wrote the other one.
TEST(Export, OneRunServesBothLayouts) {
  Ready one;
  Ready other(2, kTinyFiles, "test", "compressed-tensors");
  ASSERT_TRUE(one.run.Merge().ok());
  ASSERT_TRUE(other.run.Merge().ok());
  ASSERT_TRUE(one.run.Export("/w/again", OutputLayout::kCompressedTensors).ok());
  ASSERT_TRUE(other.run.Export("/w/again", OutputLayout::kModelopt).ok());
  EXPECT_TRUE(ReadTree(one.fs, "/w/again") == ReadTree(other.fs, "/w/out"));
  EXPECT_TRUE(ReadTree(other.fs, "/w/again") == Undisturbed());
  std::vector<std::string> names;
  for (const auto& [name, bytes] : ReadTree(other.fs, "/w/out")) names.push_back(name);
  EXPECT_THAT(names, testing::ElementsAre("SHA256SUMS", "chat_template.jinja", "config.json", "generation_config.json", "holdfast.json",
                                          "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"));
}

TEST(Export, WhatIsThereAlreadyIsNotWrittenAgain) {
  Ready r;
  const auto first = r.run.Export("/w/again", OutputLayout::kCompressedTensors);
  ASSERT_TRUE(first.ok());
  const uint64_t ops = r.fs.ops();
  const auto second = r.run.Export("/w/again", OutputLayout::kCompressedTensors, 2);
  ASSERT_TRUE(second.ok()) << second.error().message;
  EXPECT_EQ(*first, *second);
  EXPECT_LT(r.fs.ops() - ops, 5u);
}

TEST(Export, RefusesWhatIsNotItsOwn) {
  Ready r;
  ASSERT_TRUE(r.run.Merge().ok());
  EXPECT_EQ(r.run.Export("/w/out", OutputLayout::kCompressedTensors).code(), ErrorCode::kAlreadyExists);
  EXPECT_TRUE(ReadTree(r.fs, "/w/out") == Undisturbed());
  WriteFile(r.fs, "/w/again/precious.txt", ToBytes("mine"));
  EXPECT_EQ(r.run.Export("/w/again", OutputLayout::kModelopt).code(), ErrorCode::kAlreadyExists);
  EXPECT_EQ(ReadTree(r.fs, "/w/again").size(), 1u);
}

TEST(Export, RefusesAChangedSidecarBeforeItWritesAnything) {
  Ready r;
  WriteFile(r.fs, "/w/src/tokenizer.json", ToBytes("{\"a\": 2}"));
  EXPECT_EQ(r.run.Export("/w/again", OutputLayout::kModelopt).code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(Hidden(r.fs), testing::IsEmpty());
}

// Neither half an output nor the work of another attempt, whatever the step.
TEST(Export, AtEveryStepOfTheProcessAndBehindAPowerCut) {
  const auto expected = [] {
    Ready r;
    EXPECT_TRUE(r.run.Export("/w/again", OutputLayout::kCompressedTensors).ok());
    return ReadTree(r.fs, "/w/again");
  }();
  uint64_t n = 1;
  for (bool died = true; died; ++n) {
    Ready r(n * 7);
    uint64_t seen = 0;
    died = false;
    r.fs.SetHook([&](const std::string&, const std::string&) -> Status {
      died = died || ++seen == n;
      return died ? Status(ErrnoError(EIO, "dead")) : OkStatus();
    });
    (void)r.run.Export("/w/again", OutputLayout::kCompressedTensors, 7).ok();
    r.fs.SetHook(nullptr);
    if (n % 2 == 0) r.fs.Crash();
    const auto out = ReadTree(r.fs, "/w/again");
    EXPECT_TRUE(out.empty() || out == expected) << "half-written output after step " << n;
    const auto left = Hidden(r.fs);
    const auto again = r.run.Export("/w/again", OutputLayout::kCompressedTensors, 9);
    ASSERT_TRUE(again.ok()) << "step " << n << ": " << again.error().message;
    EXPECT_TRUE(ReadTree(r.fs, "/w/again") == expected) << "step " << n;
    EXPECT_EQ(Hidden(r.fs), left) << "another attempt's staging changed at step " << n;
  }
  EXPECT_GT(n, 40u);
}

TEST(Merge, SecondRunAnswersTheSame) {
  Ready r;
  const auto first = r.run.Merge();
  ASSERT_TRUE(first.ok());
  const uint64_t ops = r.fs.ops();
  const auto second = r.run.Merge();
  ASSERT_TRUE(second.ok()) << second.error().message;
  EXPECT_EQ(*first, *second);
  EXPECT_LT(r.fs.ops() - ops, 15u);  // a claim, nothing else
}

// ---- crashes ----

// Ends "the process" at its n-th change of the file system. False: it finished before.
bool DieAt(Ready* r, uint64_t n, const std::string& doing = "") {
  uint64_t seen = 0;
  bool died = false;
  r->fs.SetHook([&](const std::string& op, const std::string&) -> Status {
    if (!died && (doing.empty() || op == doing) && ++seen == n) died = true;
    if (died) return ErrnoError(EIO, "dead");
    return OkStatus();
  });
  const auto result = r->run.Merge();
  r->fs.SetHook(nullptr);
  EXPECT_TRUE(died || result.ok()) << result.error().message;
  return died;
}

void FinishAndCompare(Ready* r, const std::string& where) {
  const auto again = r->run.Merge();
  ASSERT_TRUE(again.ok()) << where << ": " << again.error().message;
  EXPECT_TRUE(ReadTree(r->fs, "/w/out") == Undisturbed()) << where;
  EXPECT_THAT(Hidden(r->fs), testing::IsEmpty()) << where;
}

TEST(MergeCrash, AtEveryStepOfTheProcess) {
  uint64_t n = 1;
  for (;; ++n) {
    Ready r;
    if (!DieAt(&r, n)) break;
    const auto out = ReadTree(r.fs, "/w/out");
    EXPECT_TRUE(out.empty() || out == Undisturbed()) << "half-written output after step " << n;
    FinishAndCompare(&r, "step " + std::to_string(n));
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(n, 60u);
}

TEST(MergeCrash, PowerCutAtEveryStep) {
  for (uint64_t n = 1;; ++n) {
    Ready r(n * 31);
    const bool died = DieAt(&r, n);
    r.fs.Crash();
    const auto out = ReadTree(r.fs, "/w/out");
    EXPECT_TRUE(out.empty() || out == Undisturbed())
        << "half-written output after a power cut at step " << n;
    FinishAndCompare(&r, "power cut at step " + std::to_string(n));
    if (testing::Test::HasFailure() || !died) return;
  }
}

TEST(MergeCrash, TwiceInARow) {
  for (uint64_t first = 5; first < 120; first += 13) {
    for (uint64_t second = 3; second < 120; second += 17) {
      Ready r(first * 100 + second);
      DieAt(&r, first);
      DieAt(&r, second);
      FinishAndCompare(&r, "steps " + std::to_string(first) + " and " + std::to_string(second));
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST(MergeCrash, FinishedFilesAreNotWrittenAgain) {
  Ready r;
  uint64_t appended = 0;
  r.fs.SetHook([&](const std::string& op, const std::string& path) -> Status {
    const bool second = path.ends_with("model-00002-of-00002.safetensors") && op == "append";
    return second ? Status(ErrnoError(EIO, "broken")) : OkStatus();
  });
  EXPECT_FALSE(r.run.Merge().ok());
  r.fs.SetHook([&](const std::string& op, const std::string& path) -> Status {
    appended += op == "append" && path.ends_with("model-00001-of-00002.safetensors");
    return OkStatus();
  });
  ASSERT_TRUE(r.run.Merge().ok());
  EXPECT_EQ(appended, 0u);
  EXPECT_TRUE(ReadTree(r.fs, "/w/out") == Undisturbed());
}

// Or a disk that filled up once could never be enough again.
TEST(MergeCrash, UnfinishedFilesOfDeadClaimsGiveTheirSpaceBack) {
  Ready r;
  const auto die = [&](const std::string& op, const std::string& path) -> Status {
    const bool second = path.ends_with("model-00002-of-00002.safetensors");
    return op == "sync" && second ? Status(ErrnoError(ENOSPC, "full")) : OkStatus();
  };
  for (int life = 0; life < 4; ++life) {
    r.fs.SetHook(die);
    EXPECT_EQ(r.run.Merge().code(), ErrorCode::kResourceExhausted);
    r.fs.SetHook(nullptr);
    size_t unfinished = 0;
    for (const std::string& dir : Hidden(r.fs)) {
      unfinished += *r.fs.Exists("/w/" + dir + "/model-00002-of-00002.safetensors");
    }
    EXPECT_EQ(unfinished, 1u) << "life " << life;
  }
  FinishAndCompare(&r, "no space, four times");
}

TEST(MergeCrash, ADamagedFileOfADeadClaimIsWrittenAgain) {
  Ready r;
  r.fs.SetHook([&](const std::string& op, const std::string& path) -> Status {
    const bool second = path.ends_with("model-00002-of-00002.safetensors") && op == "append";
    return second ? Status(ErrnoError(EIO, "broken")) : OkStatus();
  });
  EXPECT_FALSE(r.run.Merge().ok());
  r.fs.SetHook(nullptr);
  r.fs.Corrupt("/w/" + Hidden(r.fs).at(0) + "/model-00001-of-00002.safetensors", 30000, 0x10);
  FinishAndCompare(&r, "damaged");
}

// ---- refusals ----

TEST(MergeRefuses, AForeignOutputDirectory) {
  Ready r;
  WriteFile(r.fs, "/w/out/precious.txt", ToBytes("mine"));
  const auto result = r.run.Merge();
  EXPECT_EQ(result.code(), ErrorCode::kAlreadyExists);
  EXPECT_THAT(result.error().message, HasSubstr("/w/out"));
  EXPECT_EQ(AsText(*r.fs.ReadFile("/w/out/precious.txt")), "mine");
}

TEST(MergeRefuses, TheOutputOfAnotherJob) {
  Ready one;
  ASSERT_TRUE(one.run.Merge().ok());
  Ready two;
  for (const auto& [name, bytes] : ReadTree(one.fs, "/w/out")) {
    Bytes copy = bytes;
    if (name == "holdfast.json") copy = ToBytes("{\"job\": \"00000000000000000000000000000001\"}");
    WriteFile(two.fs, "/w/out/" + name, copy);
  }
  EXPECT_EQ(two.run.Merge().code(), ErrorCode::kAlreadyExists);
}

TEST(MergeRefuses, AnOutputThatAppearsJustBeforeTheRename) {
  Ready r;
  bool placed = false;
  r.fs.SetHook([&](const std::string& op, const std::string&) -> Status {
    if (op == "rename" && !std::exchange(placed, true)) WriteFile(r.fs, "/w/out/x", ToBytes("x"));
    return OkStatus();
  });
  EXPECT_EQ(r.run.Merge().code(), ErrorCode::kAlreadyExists);
  EXPECT_TRUE(placed);
  EXPECT_EQ(ReadTree(r.fs, "/w/out").size(), 1u);
}

TEST(MergeRefuses, AChangedOrMissingSidecar) {
  Ready r;
  WriteFile(r.fs, "/w/src/tokenizer.json", ToBytes("{\"a\": 2}"));
  auto result = r.run.Merge();
  EXPECT_EQ(result.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(result.error().message,
              HasSubstr("/w/src/tokenizer.json: changed since the job began"));
  ASSERT_TRUE(r.fs.Unlink("/w/src/tokenizer.json").ok());
  result = r.run.Merge();
  EXPECT_EQ(result.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(result.error().message, HasSubstr("is gone now"));
  WriteFile(r.fs, "/w/src/tokenizer.json", ToBytes("{\"a\": 1}"));
  FinishAndCompare(&r, "restored");
}

TEST(MergeRefuses, AUnitThatWasNotEvicted) {
  SimFileSystem fs;
  ExportRun run(fs, "/w", LlamaPlan({}));
  run.AddSidecar("config.json", ToBytes("{}"));
  run.Begin();
  const auto result = run.Merge();
  EXPECT_EQ(result.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(result.error().message, HasSubstr("layer 0 has not been evicted yet"));
}

TEST(MergeRefuses, ADamagedPack) {
  Ready r;
  const auto packs = ReadTree(r.fs, "/w/run/pack");
  for (const auto& [name, bytes] : packs)
    r.fs.Corrupt("/w/run/pack/" + name, bytes.size() / 2, 0x01);
  const auto result = r.run.Merge();
  EXPECT_EQ(result.code(), ErrorCode::kCorrupt);
  EXPECT_THAT(result.error().message, HasSubstr("jobctl fsck"));
  EXPECT_FALSE(*r.fs.Exists("/w/out"));
}

// Wherever the rot is, and however many threads and files are at work: no output, no damaged byte in any file, and the pack is named.
TEST(MergeRefuses, OneRottenChunk) {
  for (const uint32_t threads : {1u, 2u, 8u}) {
    Ready r(threads);
    RunState state(r.fs, r.run.layout());
    ASSERT_TRUE(state.Refresh().ok());
    const PackManifest& pack = state.Layer(threads % 2)->packs[0];
    const ChunkRef& chunk = pack.chunks[pack.chunks.size() / 2];
    const std::string name = r.run.layout().Pack(pack.root);
    const uint64_t at = chunk.offset + chunk.stored_len - 1;
    r.fs.Corrupt(name, at, 0x01);
    const auto result = r.run.Merge(threads);
    EXPECT_EQ(result.code(), ErrorCode::kCorrupt);
    EXPECT_THAT(result.error().message, testing::AllOf(HasSubstr(name), HasSubstr("jobctl fsck")));
    EXPECT_FALSE(*r.fs.Exists("/w/out"));
    for (const std::string& dir : Hidden(r.fs)) {
      for (const auto& [file, written] : ReadTree(r.fs, "/w/" + dir)) {
        const Bytes& want = Undisturbed().at(file);
        ASSERT_LE(written.size(), want.size());
        EXPECT_TRUE(std::equal(written.begin(), written.end(), want.begin())) << file;
      }
    }
    r.fs.Corrupt(name, at, 0x01);  // back again
    FinishAndCompare(&r, "rot undone");
  }
}

TEST(MergeRefuses, ASidecarThatEscapes) {
  for (const char* name : {"../x", "/etc/x", "a/../b", "", "a//b", "."}) {
    SimFileSystem fs;
    JobSpec job;
    job.source = "/src";
    job.sidecars.push_back({name, 0, 0, {}, {}});
    const auto result = MakeMetadata(fs, job, job.numerics, {}, LlamaPlan({}), {});
    EXPECT_EQ(result.code(), ErrorCode::kInvalidArgument) << name;
    EXPECT_THAT(result.error().message, HasSubstr("no path inside the model directory"));
  }
}

TEST(Merge, SidecarsInSubfolders) {
  Ready r;
  r.run.AddSidecar("extra/deep/notes.txt", ToBytes("n"));
  const auto files =
      MakeMetadata(r.fs, r.run.job(), r.run.job().numerics, {}, r.run.plan(),
                   PlanOutput(r.run.plan(), kTinyFiles));
  ASSERT_TRUE(files.ok());
  EXPECT_EQ(AsText(files->at("extra/deep/notes.txt")), "n");
}

TEST(Manifest, ParsesOnlyItself) {
  const std::map<std::string, Digest> files = {{"a", Sha256(AsBytes("1"))},
                                               {"b c", Sha256(AsBytes("2"))}};
  const auto back = ParseManifest(MakeManifest(files), "S");
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*back, files);
  const std::string hex = Sha256(AsBytes("1")).Hex();
  for (const std::string& bad : {hex, hex + "  a", hex + " a\n", "zz" + hex.substr(2) + "  a\n",
                                 hex + "  a\n" + hex + "  a\n", std::string("\n")}) {
    EXPECT_EQ(ParseManifest(bad, "S").code(), ErrorCode::kCorrupt) << bad;
  }
}

// ---- the ring ----

struct Chunks {
  std::vector<ChunkJob> jobs;
  explicit Chunks(uint32_t count, uint64_t length = 4) {
    for (uint32_t i = 0; i < count; ++i) jobs.push_back({0, 0, i, length});
  }
  // Streams them; what `sink` and the follower saw, one byte of each chunk, goes to `seen` and `followed`.
  Status Stream(uint32_t threads, const ChunkReader& read, const std::function<Status()>& proceed = OkStatus) {
    return StreamChunks(
        jobs, first_offset, read, threads, proceed,
        [this](std::span<uint8_t> bytes) {
          EXPECT_EQ(bytes.size(), jobs[seen.size()].raw_len);
          seen.push_back(bytes.back());
          return at_sink == seen.size() ? sink : OkStatus();
        },
        [this](ByteSpan bytes, ByteSpan value) {
          if (!bytes.empty()) followed.push_back(bytes.back());
          answered += !value.empty();
          return Sha256(value);
        });
  }
  uint64_t first_offset = 0;
  std::vector<uint8_t> seen, followed;
  size_t answered = 0;  // digests that the follower computed
  size_t at_sink = 0;  // how many chunks the sink takes before it answers `sink`
  Status sink;
};

Status FillIn(const ChunkJob& j, std::span<uint8_t> out, const DigestFunction&) {
  volatile uint32_t spin = (j.chunk * 7919) % 3000;
  while (spin > 0) spin = spin - 1;
  std::fill(out.begin(), out.end(), static_cast<uint8_t>(j.chunk));
  return OkStatus();
}

TEST(ChunkStream, OrderIsKeptWhateverTheTiming) {
  for (const uint32_t threads : {1u, 3u, 8u, 100u}) {
    Chunks chunks(500);
    for (uint32_t i = 0; i < 500; ++i) chunks.jobs[i].raw_len = 1 + i % 7;
    ASSERT_TRUE(chunks.Stream(threads, FillIn).ok());
    ASSERT_EQ(chunks.seen.size(), 500u);
    for (uint32_t i = 0; i < 500; ++i) ASSERT_EQ(chunks.seen[i], static_cast<uint8_t>(i));
    EXPECT_EQ(chunks.followed, chunks.seen);
  }
}

// So that the file can be written in whole pages without moving a byte.
TEST(ChunkStream, BytesLieInMemoryAsInThePagesOfTheFile) {
  Chunks chunks(300);
  for (uint32_t i = 0; i < 300; ++i) chunks.jobs[i].raw_len = 1 + i * 37 % 9000;
  uint64_t offset = 1234;
  const Status s = StreamChunks(
      chunks.jobs, offset, FillIn, 3, OkStatus,
      [&](std::span<uint8_t> bytes) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % kPastCacheAlign, offset % kPastCacheAlign);
        offset += bytes.size();
        return OkStatus();
      },
      [](ByteSpan, ByteSpan) { return Digest{}; });
  EXPECT_TRUE(s.ok());
}

// Whichever thread meets it, and however far the others are: what came before is handed over, nothing from there on is.
TEST(ChunkStream, AnErrorInTheMiddleEndsItThere) {
  for (const uint32_t threads : {1u, 4u}) {
    Chunks chunks(100);
    const Status s = chunks.Stream(threads, [](const ChunkJob& j, std::span<uint8_t> out, const DigestFunction& sha256) {
      return j.chunk >= 40 ? Status(Corrupt("chunk " + std::to_string(j.chunk))) : FillIn(j, out, sha256);
    });
    EXPECT_EQ(s.code(), ErrorCode::kCorrupt);
    EXPECT_EQ(s.error().message, "chunk 40");
    EXPECT_EQ(chunks.seen.size(), 40u);
    EXPECT_LE(chunks.followed.size(), 40u);
  }
  Chunks chunks(100);
  chunks.at_sink = 7;
  chunks.sink = Exhausted("full");
  EXPECT_EQ(chunks.Stream(4, FillIn).code(), ErrorCode::kResourceExhausted);
  EXPECT_EQ(chunks.seen.size(), 7u);
  EXPECT_TRUE(Chunks(0).Stream(4, FillIn).ok());
}

// The follower answers for readers while it follows; whoever gets no answer computes the digest himself.
TEST(ChunkStream, EveryReaderGetsItsDigestWhoeverComputesIt) {
  for (const uint32_t threads : {1u, 2u, 5u}) {
    for (const bool broken : {false, true}) {
      Chunks chunks(120, 100'000);
      std::atomic<size_t> right{0}, wrong{0};
      const Status s = chunks.Stream(threads, [&](const ChunkJob& j, std::span<uint8_t> out, const DigestFunction& sha256) -> Status {
        const Bytes value(70'000 + j.chunk, static_cast<uint8_t>(j.chunk));
        ++(sha256(value) == Sha256(value) ? right : wrong);
        return broken && j.chunk == 60 ? Status(Corrupt("chunk 60")) : FillIn(j, out, sha256);
      });
      EXPECT_EQ(s.ok(), !broken);
      EXPECT_EQ(wrong, 0u);
      EXPECT_GE(right, broken ? 61u : 120u);
      EXPECT_EQ(chunks.answered > 0, threads <= kPairThreadsMax && HasFastSha256Pair());
    }
  }
}

TEST(ChunkStream, StopsWhenItMayNotProceed) {
  Chunks chunks(1000);
  std::atomic<bool> stop{false};
  const Status s = chunks.Stream(
      3,
      [&](const ChunkJob& j, std::span<uint8_t> out, const DigestFunction& sha256) {
        if (j.chunk == 20) stop = true;
        return FillIn(j, out, sha256);
      },
      [&]() -> Status { return stop ? Status(Stopped("asked")) : OkStatus(); });
  EXPECT_EQ(s.code(), ErrorCode::kStopped);
  EXPECT_LE(chunks.seen.size(), 20u);
}

TEST(ChunkStream, MemoryThatRunsOutOnAThreadIsAnError) {
  Chunks chunks(50);
  const Status s = chunks.Stream(2, [](const ChunkJob& j, std::span<uint8_t> out, const DigestFunction& sha256) -> Status {
    if (j.chunk == 30) throw std::bad_alloc();
    return FillIn(j, out, sha256);
  });
  EXPECT_EQ(s.code(), ErrorCode::kResourceExhausted);
}

// However slow the disk is: no chunk is decoded before a buffer of the ring is free.
TEST(ChunkStream, DecodesNoFurtherAheadThanItsRing) {
  for (const uint32_t threads : {1u, 2u, 16u}) {
    Chunks chunks(200);
    std::atomic<uint32_t> begun{0}, ahead{0}, taken{0};
    const Status s = StreamChunks(
        chunks.jobs, 0,
        [&](const ChunkJob& j, std::span<uint8_t> out, const DigestFunction& sha256) {
          const uint32_t now = ++begun - taken;
          for (uint32_t seen = ahead; seen < now && !ahead.compare_exchange_weak(seen, now);) {}
          return FillIn(j, out, sha256);
        },
        threads, OkStatus,
        [&](std::span<uint8_t>) {
          std::this_thread::yield();
          ++taken;
          return OkStatus();
        },
        [](ByteSpan, ByteSpan) { return Digest{}; });
    ASSERT_TRUE(s.ok());
    EXPECT_LE(ahead, kDecodeThreadsMax + kSpareBuffers);
  }
}

// ---- pages ----

TEST(PagedWriter, AppendsWholePagesAndLosesNothing) {
  SimFileSystem fs;
  std::vector<uint64_t> lengths;
  Bytes want;
  const auto file = fs.Create("/f", 0644);
  PagedWriter pages(**file);
  size_t ragged = 0;
  fs.SetHook([&](const std::string& op, const std::string&) -> Status {
    if (op == "append") ++ragged;
    return OkStatus();
  });
  std::mt19937 random(5);
  for (int i = 0; i < 400; ++i) {
    Bytes piece(random() % (i % 3 == 0 ? 20000 : 60));
    for (uint8_t& b : piece) b = static_cast<uint8_t>(random());
    ASSERT_TRUE(pages.AppendCopy(piece).ok());
    want.insert(want.end(), piece.begin(), piece.end());
    EXPECT_EQ(fs.Stat("/f")->size % kPastCacheAlign, 0u);
  }
  ASSERT_TRUE(pages.Finish().ok());
  EXPECT_EQ(pages.offset(), want.size());
  EXPECT_TRUE(*fs.ReadFile("/f") == want);
}

// ---- lanes ----

struct LaneLog {
  std::mutex mutex;  // guards the rest
  std::vector<uint32_t> streamed, settled, committed;
  uint32_t at_once = 0, most_at_once = 0;
  std::atomic<uint32_t> progress{0};
  std::function<Status(uint32_t)> stream = [](uint32_t) { return OkStatus(); };
  std::function<Status(uint32_t)> commit = [](uint32_t) { return OkStatus(); };

  Lanes::Steps Steps() {
    return {.stream = [this](uint32_t i) {
              {
                const std::lock_guard<std::mutex> lock(mutex);
                streamed.push_back(i);
                most_at_once = std::max(most_at_once, ++at_once);
              }
              Status s = stream(i);
              const std::lock_guard<std::mutex> lock(mutex);
              --at_once;
              return s;
            },
            .settle = [this](uint32_t i) {
              const std::lock_guard<std::mutex> lock(mutex);
              settled.push_back(i);
              return OkStatus();
            },
            .commit = [this](uint32_t i) {
              {
                const std::lock_guard<std::mutex> lock(mutex);
                EXPECT_NE(std::find(settled.begin(), settled.end(), i), settled.end());
                committed.push_back(i);
              }
              return commit(i);
            },
            .progress = [this] { ++progress; }};
  }
};

TEST(Lanes, EveryFileGoesThroughEveryStepOnce) {
  for (const uint32_t lanes : {0u, 1u, 3u, 8u}) {
    LaneLog log;
    const auto caller = std::this_thread::get_id();
    log.commit = [&](uint32_t) {
      EXPECT_EQ(std::this_thread::get_id(), caller);
      return OkStatus();
    };
    Lanes all(lanes, 20, log.Steps());
    ASSERT_TRUE(all.Run().ok());
    std::vector<uint32_t> every(20);
    for (uint32_t i = 0; i < 20; ++i) every[i] = i;
    EXPECT_EQ(log.streamed.size(), 20u);
    EXPECT_LE(log.most_at_once, std::max(1u, lanes));
    EXPECT_THAT(log.committed, testing::UnorderedElementsAreArray(every));
    if (lanes == 0) { EXPECT_EQ(log.committed, every); }
  }
}

// Work that is done is kept: a file past its stream is committed although another one failed.
TEST(Lanes, AFailedStreamEndsTheOthersAndKeepsWhatIsDone) {
  LaneLog log;
  Lanes* lanes = nullptr;
  log.stream = [&](uint32_t i) -> Status {
    if (i < 3) return OkStatus();
    if (i == 4) return Corrupt("file 4");
    while (!lanes->failed()) std::this_thread::yield();
    return Stopped("another failed");
  };
  Lanes two(2, 50, log.Steps());
  lanes = &two;
  EXPECT_EQ(two.Run().error().message, "file 4");
  EXPECT_THAT(log.committed, testing::UnorderedElementsAre(0, 1, 2));
  EXPECT_LE(log.streamed.size(), 5u);
}

TEST(Lanes, NothingIsCommittedBehindAFailedCommit) {
  LaneLog log;
  log.commit = [](uint32_t) -> Status { return Error{ErrorCode::kFenced, "a newer claim"}; };
  Lanes lanes(3, 50, log.Steps());
  EXPECT_EQ(lanes.Run().code(), ErrorCode::kFenced);
  EXPECT_EQ(log.committed.size(), 1u);
}

TEST(Lanes, MemoryThatRunsOutInALaneIsAnError) {
  LaneLog log;
  log.stream = [](uint32_t) -> Status { throw std::bad_alloc(); };
  Lanes lanes(2, 5, log.Steps());
  EXPECT_EQ(lanes.Run().code(), ErrorCode::kResourceExhausted);
}

}  // namespace
}  // namespace holdfast
