// SPDX-License-Identifier: Apache-2.0
//
// A small run directory in a simulated file system, written by hand: for tests of what is read off it.
#pragma once

#include <string>
#include <vector>

#include "ledger/base/sim_file_system.h"
#include "ledger/fold/run_state.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {

inline constexpr uint32_t kSamples = 4;

struct TestRun {
  SimFileSystem fs;
  RunLayout layout{"/run"};
  StillClock clock;
  Nonce job = NonceOf(0x77);
  uint8_t lives = 0;

  explicit TestRun(uint32_t layers = 3, std::vector<StagePlan> stages = {{StageId(0), 0, 2}, {StageId(1), 2, 3}}, uint32_t skip_samples = 0) {
    HOLDFAST_EXPECT_OK(EnsureFormat(fs, layout, NonceOf(1), skip_samples > 0 ? kIncompatOmissions : 0));
    std::vector<Record> first;
    JobSpec spec = SmallJob(job, kSamples);
    spec.skip_samples = skip_samples;
    Sha256Hasher hasher;
    for (uint32_t s = 0; s < kSamples; ++s) {
      const std::vector<int32_t> ids = {1, 2, static_cast<int32_t>(s)};
      Record r;
      r.key = {RecordClass::kJob, 0, s, 0, 1};
      r.payload = EncodeTokens(ids);
      Bytes length;
      PutLe<uint32_t>(&length, 3);
      hasher.Update(length);
      hasher.Update(r.payload);
      first.push_back(r);
    }
    spec.tokens_sha256 = hasher.Finish();
    first.push_back(MakeControl({RecordClass::kJob, 0, 0, 0, 0}, spec.ToJson()));
    first.push_back(MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, SmallPlan(layers, stages).ToJson()));
    Write("job", {}, first);
  }

  // Claims a stream, appends one slot for each list, and leaves it claimed.
  void Write(const std::string& stream, const std::vector<std::vector<Record>>& slots, std::vector<Record> with_claim = {}) {
    StreamReader reader(fs, layout, stream, job);
    StreamWriter::Options options;
    options.job = job;
    options.claim.incarnation = NonceOf(static_cast<uint8_t>(0x80 + lives++));
    options.claim.node = "n";
    options.claim.reason = "test";
    auto writer = StreamWriter::Open(fs, layout, clock, &reader, nullptr, options, std::move(with_claim));
    EXPECT_TRUE(writer.ok()) << writer.error().message;
    for (const auto& slot : slots) {
      const Status s = (*writer)->Append(slot);
      EXPECT_TRUE(s.ok()) << s.error().message;
    }
  }
};

inline std::vector<Record> SampleSlot(uint32_t sample, StageId stage, uint32_t first, uint32_t last, float scale = 1) {
  return SmallSample(sample, first, last, scale).ToRecords(stage);
}

}  // namespace holdfast
