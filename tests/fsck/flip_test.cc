// SPDX-License-Identifier: Apache-2.0
//
// Every single byte counts. Of each slot of a half-done and of a finished run every byte is flipped, environment and trailer alike: the reader
// refuses the slot before anything of it could be folded. Of packs, bytes are sampled: every one is found by the check that --deep makes. A
// sample of both goes through the whole of fsck --deep.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "ledger/pack/pack.h"
#include "tests/fsck/tiny_run.h"

namespace holdfast::testing {
namespace {

const Until kStates[] = {Until::kSamples, Until::kDone};
constexpr size_t kPackStep = 23;    // of a pack every 23rd byte, another one in each pack
constexpr int kWholeChecks = 40;    // flips of each kind that go through all of fsck

std::vector<std::string> Slots(TinyRun& run) {
  std::vector<std::string> paths;
  for (const std::string stream : {"job", "stage.00", "stage.01", "merge"}) {
    const auto names = run.fs.List(run.layout.StreamDir(stream));
    for (size_t i = 0; names.ok() && i < names->size(); ++i) paths.push_back(run.layout.StreamDir(stream) + "/" + (*names)[i]);
  }
  return paths;
}

std::map<std::string, PackManifest> Packs(TinyRun& run) {
  RunState state(run.fs, run.layout);
  EXPECT_TRUE(state.Refresh().ok());
  std::map<std::string, PackManifest> packs;
  const auto take = [&](const std::vector<PackManifest>& all) {
    for (const PackManifest& m : all) packs[run.layout.Pack(m.root)] = m;
  };
  for (uint32_t unit = 0; unit < state.plan().units.size(); ++unit) {
    if (const LayerRecord* e = state.Layer(unit)) take(e->packs);
  }
  for (uint32_t sample = 0; sample < state.job().samples; ++sample) {
    const SampleRecord* s = state.Sample(sample, 0);
    if (s != nullptr && s->output) take(s->output->packs);
  }
  return packs;
}

TEST(FsckFlips, NoByteOfASlotIsFoldedWrong) {
  std::mt19937 random(11);
  uint64_t flips = 0;
  for (const Until state : kStates) {
    TinyRun run({.until = state, .samples = 2});
    for (const std::string& path : Slots(run)) {
      Bytes file = Slurp(path);
      ASSERT_TRUE(CheckSegment(file).ok());
      for (size_t at = 0; at < file.size(); ++at, ++flips) {
        const uint8_t mask = static_cast<uint8_t>(1u << (random() % 8));
        file[at] ^= mask;
        ASSERT_FALSE(CheckSegment(file).ok()) << path << " byte " << at;
        file[at] ^= mask;
      }
    }
  }
  RecordProperty("flips", static_cast<int>(flips));
  std::printf("%llu bytes of slots flipped, every one refused\n", static_cast<unsigned long long>(flips));
}

TEST(FsckFlips, NoByteOfAPackPassesTheDeepCheck) {
  std::mt19937 random(12);
  uint64_t flips = 0;
  for (const Until state : kStates) {
    TinyRun run({.until = state, .samples = 2});
    for (const auto& [path, manifest] : Packs(run)) {
      const Bytes sound = Slurp(path);
      ASSERT_TRUE(VerifyPack(run.fs, run.layout, manifest).ok());
      for (size_t at = random() % kPackStep; at < sound.size(); at += kPackStep, ++flips) {
        Bytes damaged = sound;
        damaged[at] ^= static_cast<uint8_t>(1u << (random() % 8));
        run.Rewrite(path, damaged);
        ASSERT_EQ(VerifyPack(run.fs, run.layout, manifest).code(), ErrorCode::kCorrupt) << path << " byte " << at;
      }
      run.Rewrite(path, sound);
    }
  }
  std::printf("%llu bytes of packs flipped, every one found\n", static_cast<unsigned long long>(flips));
}

TEST(FsckFlips, ASampleGoesThroughTheWholeCheck) {
  std::mt19937 random(13);
  for (const Until state : kStates) {
    TinyRun run({.until = state, .samples = 2});
    std::vector<std::string> paths = Slots(run);
    for (const auto& [path, manifest] : Packs(run)) paths.push_back(path);
    for (int i = 0; i < kWholeChecks; ++i) {
      const std::string& path = paths[random() % paths.size()];
      const Bytes sound = Slurp(path);
      Bytes damaged = sound;
      const size_t at = random() % damaged.size();
      damaged[at] ^= static_cast<uint8_t>(1u << (random() % 8));
      run.Rewrite(path, damaged);
      const FsckReport r = run.Fsck(/*deep=*/true);
      EXPECT_NE(r.exit_status & kFsckErrorsLeft, 0) << path << " byte " << at;
      run.Rewrite(path, sound);
    }
    EXPECT_EQ(run.Fsck(true).exit_status, 0);
  }
}

}  // namespace
}  // namespace holdfast::testing
