// SPDX-License-Identifier: Apache-2.0
//
// docs/ledger-format.md is complete enough: a short script that shares no code with us reads what we write.
#include <cstdio>

#include "ledger/cluster/queue.h"
#include "ledger/fold/run_state.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

StreamWriter::Options OptionsFor(uint8_t who) {
  StreamWriter::Options o;
  o.job = NonceOf(0x77);
  o.claim.incarnation = NonceOf(who);
  o.claim.node = "n";
  return o;
}

void WriteRun(FileSystem& fs, const RunLayout& layout) {
  StillClock clock;
  HOLDFAST_ASSERT_OK(EnsureFormat(fs, layout, NonceOf(1)));
  Record tokens;
  tokens.key = {RecordClass::kJob, 0, 0, 0, 1};
  tokens.payload = EncodeTokens({1, 2, 3});
  StreamReader job(fs, layout, "job", NonceOf(0x77));
  HOLDFAST_ASSERT_OK(StreamWriter::Open(fs, layout, clock, &job, nullptr, OptionsFor(1),
                                        {MakeControl({RecordClass::kJob, 0, 0, 0, 0}, SmallJob(NonceOf(0x77), 2).ToJson()), tokens,
                                         MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, SmallPlan(300, {{StageId(0), 0, 300}}).ToJson())}));
  StreamReader stage(fs, layout, "stage.00", NonceOf(0x77));
  auto writer = StreamWriter::Open(fs, layout, clock, &stage, nullptr, OptionsFor(2));
  HOLDFAST_ASSERT_OK(writer);
  HOLDFAST_ASSERT_OK((*writer)->Append(SmallSample(0, 0, 2).ToRecords(StageId(0))));
  HOLDFAST_ASSERT_OK((*writer)->Append(SmallSample(1, 0, 300).ToRecords(StageId(0))));  // long enough to be compressed
}

std::string ReadByScript(const std::string& dir) {
  FILE* pipe = ::popen(("python3 " HOLDFAST_SOURCE_DIR "/tests/ledger/read_run.py " + dir + " 2>&1").c_str(), "r");
  std::string out;
  for (int c; (c = std::fgetc(pipe)) != EOF;) out.push_back(static_cast<char>(c));
  EXPECT_EQ(::pclose(pipe), 0) << out;
  return out;
}

TEST(ReadRun, AScriptReadsARunDirectory) {
  const TempDir dir;
  PosixFileSystem fs;
  WriteRun(fs, RunLayout(dir.path()));
  const std::string out = ReadByScript(dir.path());
  const auto expect = [&](const std::string& text) { EXPECT_NE(out.find(text), std::string::npos) << "missing: " << text << "\n" << out; };
  expect("format 1\n");
  expect("stream job: 1 slots\n");
  expect("stream stage.00: 3 slots\n");
  expect("  slot 2 epoch 1 by 02020202: 2 records\n");
  expect("    C stage 0 a 1 b 0 part 0: ['epoch', 'incarnation', ");
  std::string amax = "    S sample 1 layers from 0: amax";
  for (const float v : SmallSample(1, 0, 300).amax) amax += " " + std::to_string(static_cast<int>(v)) + ".0";
  expect(amax + "\n");
}

TEST(ReadRun, AScriptReadsARoot) {
  for (const bool links : {true, false}) {
    const TempDir dir;
    PosixFileSystem posix;
    const RootLayout layout(dir.path());
    const auto root = EnsureRoot(posix, layout, NonceOf(1));
    HOLDFAST_ASSERT_OK(root);
    const auto fs = links ? OpenFileSystemFor(posix, *root) : MakeRenamingFileSystem(posix);
    StillClock clock;
    Queue queue(*fs, layout, root->uuid);
    Incarnation self;
    self.nonce = NonceOf(2);
    for (const char* id : {"00000000beef", "00000000cafe"}) {
      QueueRecord submit;
      submit.job = id;
      HOLDFAST_ASSERT_OK(queue.Append(clock, self, submit, nullptr));
    }
    const std::string out = ReadByScript(dir.path());
    for (const char* text : {"format 1\ncommit link\n", "stream queue: 2 slots\n", "  slot 1 epoch 2 by 02020202: 3 records\n",
                             "    Q stage 0 a 0 b 0 part 0: ['after', 'by', 'detail', 'job', "}) {
      EXPECT_NE(out.find(text), std::string::npos) << "missing: " << text << "\n" << out;
    }
  }
}

}  // namespace
}  // namespace holdfast
