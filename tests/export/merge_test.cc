// SPDX-License-Identifier: Apache-2.0
//
// Merge: whatever happens in between, the output directory is either absent or the one that an undisturbed merge makes. The
// exhaustive test ends the process at every single change of the file system, with and without a power cut, and goes on with a
// new owner.
#include "export/merge/merge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "export/merge/chunk_stream.h"
#include "export/merge/metadata.h"
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
                 const std::string& numerics = "test")
      : fs(seed), run(fs, "/w", LlamaPlan({}), shard_bytes) {
    run.job().numerics = numerics;
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
  bool died = false;
  r.fs.SetHook([&](const std::string& op, const std::string& path) -> Status {
    if (path.ends_with("model-00002-of-00002.safetensors") && op == "append") died = true;
    return died ? Status(ErrnoError(EIO, "dead")) : OkStatus();
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
  bool died = false;
  r.fs.SetHook([&](const std::string& op, const std::string& path) -> Status {
    if (path.ends_with("model-00002-of-00002.safetensors") && op == "append") died = true;
    return died ? Status(ErrnoError(EIO, "dead")) : OkStatus();
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

TEST(ChunkStream, OrderIsKeptWhateverTheTiming) {
  std::vector<ChunkJob> jobs;
  for (uint32_t i = 0; i < 500; ++i) jobs.push_back({0, 0, i, 1 + i % 7});
  for (const uint32_t threads : {1u, 3u, 8u, 100u}) {
    uint32_t next = 0;
    const auto read = [](const ChunkJob& j, std::span<uint8_t> out) {
      volatile uint32_t spin = (j.chunk * 7919) % 3000;
      while (spin > 0) spin = spin - 1;
      std::fill(out.begin(), out.end(), static_cast<uint8_t>(j.chunk));
      return OkStatus();
    };
    const auto sink = [&](ByteSpan bytes) {
      EXPECT_EQ(bytes.size(), jobs[next].raw_len);
      EXPECT_EQ(bytes.back(), static_cast<uint8_t>(next));
      ++next;
      return OkStatus();
    };
    ASSERT_TRUE(StreamChunks(jobs, read, threads, nullptr, sink).ok());
    EXPECT_EQ(next, 500u);
  }
}

TEST(ChunkStream, ErrorsEndIt) {
  std::vector<ChunkJob> jobs(100, ChunkJob{0, 0, 0, 4});
  for (uint32_t i = 0; i < 100; ++i) jobs[i].chunk = i;
  const auto read = [](const ChunkJob& j, std::span<uint8_t>) {
    return j.chunk == 40 ? Status(Corrupt("chunk 40")) : OkStatus();
  };
  uint32_t seen = 0;
  const Status s = StreamChunks(jobs, read, 4, nullptr, [&](ByteSpan) {
    ++seen;
    return OkStatus();
  });
  EXPECT_EQ(s.code(), ErrorCode::kCorrupt);
  EXPECT_EQ(seen, 40u);
  EXPECT_EQ(StreamChunks(jobs, read, 4, nullptr, [](ByteSpan) { return Status(Exhausted("full")); })
                .code(),
            ErrorCode::kResourceExhausted);
  EXPECT_TRUE(StreamChunks({}, read, 4, nullptr, nullptr).ok());
}

}  // namespace
}  // namespace holdfast
