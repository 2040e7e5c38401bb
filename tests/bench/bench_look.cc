// SPDX-License-Identifier: Apache-2.0
//
// What one look at a run directory costs as its streams grow: everything read once, a look that finds nothing new, one that finds one slot, and one of
// somebody who works on a single stage. The ledger is made here, by the writer itself: a plan of STAGES stages, samples in order.
// Times are CPU times of this process: with everything in the page cache, nothing is waited for.
// Usage: bench_look DIR STAGES SLOTS...   (slots of each stage's stream, ascending; DIR is made, or grown; best on a RAM disk, each commit is fsynced)
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "ledger/fold/run_state.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

constexpr int kRounds = 9;

void Must(const Status& s) {
  if (s.ok()) return;
  std::fprintf(stderr, "bench_look: %s\n", s.error().message.c_str());
  std::exit(1);
}

double CpuMilliseconds() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) / 1e6;
}

double Milliseconds(const std::function<void()>& work) {
  const double begin = CpuMilliseconds();
  work();
  return CpuMilliseconds() - begin;
}

double Median(const std::function<void()>& work) {
  std::vector<double> all;
  for (int i = 0; i < kRounds; ++i) all.push_back(Milliseconds(work));
  std::sort(all.begin(), all.end());
  return all[kRounds / 2];
}

class Run {
 public:
  Run(const std::string& dir, uint32_t stages) : layout_(dir), stages_(stages) {
    if (const auto id = ReadJobId(fs_, layout_); id.ok()) {
      job_ = *id;
      return;
    }
    job_ = Nonce::Random();
    Must(fs_.MakeDirs(layout_.TmpDir(NonceOf(1))));
    Must(EnsureFormat(fs_, layout_, NonceOf(1)));
    std::vector<StagePlan> plan;
    for (uint32_t s = 0; s < stages; ++s) plan.push_back({StageId(static_cast<uint16_t>(s)), s, s + 1});
    JobSpec spec = SmallJob(job_, 1u << 20);
    spec.tokens_sha256 = Digest{};   // whose tokens these are is of no interest here
    Own(RunLayout::JobStream(), {MakeControl({RecordClass::kJob, 0, 0, 0, 0}, spec.ToJson()), MakeControl({RecordClass::kPlan, 0, 0, 0, 0}, SmallPlan(stages, plan).ToJson())});
  }

  // Each stage's stream to so many slots.
  void Grow(uint32_t slots) {
    for (uint32_t s = 0; s < stages_; ++s) Append(s, slots);
  }

  void Append(uint32_t stage, uint32_t until) {
    Writer& w = WriterOf(stage);
    const StageId id(static_cast<uint16_t>(stage));
    while (w.writer->next_seq() < until) Must(w.writer->Append(SmallSample(w.writer->next_seq(), stage, stage + 1).ToRecords(id)));
  }
  void AppendOne(uint32_t stage) { Append(stage, WriterOf(stage).writer->next_seq() + 1); }

  FileSystem& fs() { return fs_; }
  const RunLayout& layout() const { return layout_; }

 private:
  struct Writer {
    std::unique_ptr<StreamReader> reader;   // outlives the writer
    std::unique_ptr<StreamWriter> writer;
  };

  Writer Own(const std::string& stream, std::vector<Record> with_claim) {
    Writer w;
    w.reader = std::make_unique<StreamReader>(fs_, layout_, stream, job_);
    StreamWriter::Options options;
    options.job = job_;
    options.claim.incarnation = NonceOf(1);
    options.claim.node = "bench";
    options.claim.reason = "bench";
    auto writer = StreamWriter::Open(fs_, layout_, clock_, w.reader.get(), [](const Record&, const Slot&) { return OkStatus(); }, options, std::move(with_claim));
    Must(writer.ok() ? OkStatus() : Status(writer.error()));
    w.writer = std::move(*writer);
    return w;
  }

  Writer& WriterOf(uint32_t stage) {
    const auto it = writers_.find(stage);
    return it != writers_.end() ? it->second : writers_.emplace(stage, Own(RunLayout::StageStream(StageId(static_cast<uint16_t>(stage))), {})).first->second;
  }

  PosixFileSystem fs_;
  RealClock clock_;
  RunLayout layout_;
  const uint32_t stages_;
  Nonce job_;
  std::map<uint32_t, Writer> writers_;
};

void Measure(Run* run, uint32_t stages, uint32_t slots) {
  RunState state(run->fs(), run->layout());
  const double first = Milliseconds([&] { Must(state.Refresh()); });
  const double nothing = Median([&] { Must(state.Refresh()); });
  const uint32_t middle = stages / 2;
  const std::string dir = run->layout().StreamDir(RunLayout::StageStream(StageId(static_cast<uint16_t>(middle))));
  const double names = Median([&] { Must(run->fs().List(dir).ok() ? OkStatus() : Status(NotFound(dir))); });
  std::vector<double> one;
  for (int i = 0; i < kRounds; ++i) {
    run->AppendOne(middle);
    one.push_back(Milliseconds([&] { Must(state.Refresh()); }));
  }
  std::sort(one.begin(), one.end());
  const double mine = Median([&] { Must(state.RefreshLayers({{middle, middle + 1}})); });
  const double cuts = Median([&] { Must(state.RefreshCutsBefore(middle)); });
  std::printf("| %u | %u | %.0f ms | %.2f ms | %.2f ms | %.2f ms | %.2f ms | %.2f ms |\n", slots, slots * stages, first, nothing, one[kRounds / 2], mine, cuts, names);
  std::fflush(stdout);
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  using namespace holdfast;
  if (argc < 4) {
    std::fprintf(stderr, "usage: bench_look DIR STAGES SLOTS...\n");
    return 2;
  }
  const auto stages = static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10));
  Run run(argv[1], stages);
  std::printf("| slots of a stage | of %u stages | read for the first time | nothing new | one new slot | one stage | its cuts | one listing |\n|---|---|---|---|---|---|---|---|\n", stages);
  for (int i = 3; i < argc; ++i) {
    const auto slots = static_cast<uint32_t>(std::strtoul(argv[i], nullptr, 10));
    run.Grow(slots);
    Measure(&run, stages, slots);
  }
}
