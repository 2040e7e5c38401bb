// SPDX-License-Identifier: Apache-2.0
//
// jobctl plan: everything that run checks but the weights themselves, then what it would do and how long that takes. Starts nothing and writes nothing
// but the cache of what was measured.
#include <algorithm>
#include <cstdio>
#include <thread>

#include "daemon/node/job_driver.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"
#include "jobctl/run_plan.h"
#include "ledger/base/printable.h"

namespace holdfast {
namespace {

// An output that is there can only be that of a job whose ledger is there, too; what run makes of it is a resume.
Result<bool> WasBegun(FileSystem& fs, const RunOptions& o) {
  HOLDFAST_ASSIGN(const bool begun, fs.Exists(RunLayout(o.run_dir).FormatFile()));
  HOLDFAST_ASSIGN(const bool taken, fs.Exists(o.out));
  if (begun || !taken) return begun;
  return Error{ErrorCode::kAlreadyExists, "--out " + o.out + " exists and was not made by this run; move it away, or choose another --out"};
}

Result<RunPlan> PlanHere(const RunOptions& o, bool out_given, Measure measure) {
  PosixFileSystem fs;
  RealClock clock;
  const uint64_t begin_ns = clock.MonotonicNs();
  bool begun = false;
  if (out_given) {
    HOLDFAST_ASSIGN(begun, WasBegun(fs, o));
  }
  const uint32_t threads = o.threads > 0 ? o.threads : std::max(1u, std::thread::hardware_concurrency());
  HOLDFAST_ASSIGN(std::vector<Device> devices, ChooseDevices(o.device));
  const uint32_t of_stages = ThreadsOfStages(o, threads, devices);
  HOLDFAST_ASSIGN(NewJob job, PrepareNewJob(fs, o, NumericsOf(devices), threads, WeightScan::kLater));
  HOLDFAST_ASSIGN(const auto ranges, CutFor(o, job.decoder, job.plan, job.spec.seq_len, of_stages, &devices));
  job.plan.stages = NumberStages(nullptr, ranges);
  HOLDFAST_ASSIGN(const ResourcePlan resources, PlanResources(o, job.decoder, job.plan, job.spec, devices, of_stages));
  if (out_given && !begun) HOLDFAST_TRY(CheckSpace(fs, resources, o.run_dir, o.out));

  PlanSubject subject{.decoder = &job.decoder, .plan = &job.plan, .job = &job.spec, .tokens = &job.tokens, .done = nullptr, .device = &devices.front(),
                      .devices = &devices, .threads = threads, .run_dir = o.run_dir, .scan_bytes = 0, .checked_ms = (clock.MonotonicNs() - begin_ns) / 1'000'000};
  for (const SourceFile& f : job.spec.weights) subject.scan_bytes += f.size;
  if (subject.scan_bytes > kScanBytesMax) subject.scan_bytes = 0;
  RunPlan plan = DescribeRun(subject, resources);
  if (begun) plan.notes.push_back("a job was begun in " + o.run_dir + "; this is the plan of a whole one");
  AddTimes(fs, clock, ProbeCache(fs, ProbeCache::DefaultDir(), MachineName::This()), subject, {.measure = measure, .version = HOLDFAST_VERSION, .stop = nullptr}, &plan);
  return plan;
}

int PlanOfRoot(const PlanOptions& options) {
  const RunOptions& r = options.run;
  SubmitOptions o;
  o.root = options.root;
  o.source = r.source;
  o.calib = r.calib;
  o.out = r.out.empty() ? AbsolutePath(BaseName(r.source) + "-NVFP4") : r.out;
  o.shard_layers = r.shard_layers;
  o.on = options.on;
  o.samples = r.samples;
  o.seq_len = r.seq_len;
  o.skip_samples = r.skip_samples;
  o.recipe = r.recipe;
  o.layout = r.layout;
  o.max_shard_size = r.max_shard_size;
  o.json = r.json;
  o.plan_only = true;
  return SubmitCommand(o);
}

}  // namespace

int PlanCommand(const PlanOptions& options) {
  if (!options.root.empty()) return PlanOfRoot(options);
  RunOptions o = options.run;
  const bool out_given = !o.out.empty();
  o.source = AbsolutePath(o.source);
  o.calib = AbsolutePath(o.calib);
  o.out = AbsolutePath(out_given ? o.out : BaseName(o.source) + "-NVFP4");
  o.run_dir = AbsolutePath(o.run_dir.empty() ? o.out + ".run" : o.run_dir);
  const auto plan = PlanHere(o, out_given, options.no_probe ? Measure::kNever : Measure::kAlways);
  if (!plan.ok()) return Fail(plan.error(), o.json);
  if (o.json) {
    std::printf("%s\n", RunPlanJson(*plan).dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return kExitOk;
  }
  for (const std::string& line : RenderRunPlan(*plan)) std::printf("%s\n", Printable(line).c_str());
  return kExitOk;
}

}  // namespace holdfast
