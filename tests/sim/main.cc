// SPDX-License-Identifier: Apache-2.0
//
// holdfast-sim: runs seeds, or one seed with everything that happens.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"
#include "ledger/base/json.h"
#include "tests/sim/scale.h"
#include "tests/sim/scenario.h"

namespace holdfast::sim {
namespace {

constexpr char kUsage[] =
    "usage: holdfast-sim [--seed N [--trace]] [--seeds N] [--first N] [--all-faults] [--mutant NAME|list] [--scale CELLS [--nodes LIST] [--no-deaths]]\n\n"
    "Simulates whole clusters, one history a seed. Without arguments: 1000 seeds.\n"
    "  --seed N         this one; twice, and both histories must be the same\n"
    "  --trace          every call of every process, with its virtual time\n"
    "  --seeds N        seeds first .. first+N-1 (default 1000)\n"
    "  --first N        default 1. The last line is a JSON object; as many processes as there are cores may run side by side\n"
    "  --all-faults     fails, too, if some kind of fault never happened\n"
    "  --scale CELLS    how costs grow with nodes for about CELLS cells: a table, and scale.svg in the working directory\n"
    "  --nodes LIST     with --scale: so many nodes each (default 1,2,4,8,16,32,64)\n"
    "  --no-deaths      with --scale: only runs without any, a third of the work\n"
    "  --mutant NAME    a broken variant: runs until it is caught, at most --seeds\n\n"
    "EXIT STATUS: 0 nothing is wrong (with --mutant: it was caught), 1 something is, 2 usage.\n";

constexpr unsigned kSeedSecondsMax = 600;   // of real time: a seed takes a twentieth of one
volatile uint64_t g_seed = 0;

// A seed that ends the process, or does not end: at least it is known which.
void SayWhichSeed(int signal) {
  char text[96];
  const int n = std::snprintf(text, sizeof(text), "seed %llu: %s\n", static_cast<unsigned long long>(g_seed), signal == SIGALRM ? "does not end" : "ends the process");
  (void)!::write(STDOUT_FILENO, text, static_cast<size_t>(n));
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

struct Arguments {
  uint64_t first = 1, seeds = 1000, scale = 0;
  std::vector<uint32_t> nodes = {1, 2, 4, 8, 16, 32, 64};
  bool one = false, trace = false, all_faults = false, deaths = true, list = false, usage = false;
  Mutant mutant = Mutant::kNone;
};

// "1,8,64"
bool ParseList(const std::string& text, std::vector<uint32_t>* numbers) {
  numbers->clear();
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const unsigned long n = std::strtoul(text.substr(at, comma - at).c_str(), nullptr, 10);
    if (n == 0 || n > 64) return false;
    numbers->push_back(static_cast<uint32_t>(n));
    at = comma + 1;
  }
  return true;
}

Arguments Parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (arg == "--trace" || arg == "--all-faults" || arg == "--no-deaths") {
      if (arg == "--trace") a.trace = true;
      else if (arg == "--all-faults") a.all_faults = true;
      else a.deaths = false;
      continue;
    }
    if (value.empty()) {
      a.usage = true;
      return a;
    }
    ++i;
    if (arg == "--seed") a.one = true, a.first = std::strtoull(value.c_str(), nullptr, 10);
    else if (arg == "--seeds") a.seeds = std::strtoull(value.c_str(), nullptr, 10);
    else if (arg == "--first") a.first = std::strtoull(value.c_str(), nullptr, 10);
    else if (arg == "--scale") a.scale = std::strtoull(value.c_str(), nullptr, 10);
    else if (arg == "--nodes") a.usage = a.usage || !ParseList(value, &a.nodes);
    else if (arg == "--mutant" && value == "list") a.list = true;
    else if (arg == "--mutant" && MutantNamed(value)) a.mutant = *MutantNamed(value);
    else a.usage = true;
  }
  return a;
}

int RunOne(const Arguments& a) {
  g_seed = a.first;
  const RunResult r = RunSeed({.seed = a.first, .trace = a.trace, .mutant = a.mutant, .deep = true});
  const RunResult again = RunSeed({.seed = a.first, .trace = false, .mutant = a.mutant, .deep = true});
  std::printf("seed %llu: %s\n", static_cast<unsigned long long>(a.first), r.wrong.empty() ? "ok" : r.wrong.c_str());
  std::printf("%llu s of virtual time, %llu events, %llu messages, %llu deaths, %llu claims, %llu acknowledged, %llu server crashes%s; history %016llx\n",
              static_cast<unsigned long long>(r.virtual_ns / 1'000'000'000), static_cast<unsigned long long>(r.events), static_cast<unsigned long long>(r.messages),
              static_cast<unsigned long long>(r.deaths), static_cast<unsigned long long>(r.claims), static_cast<unsigned long long>(r.acks),
              static_cast<unsigned long long>(r.server_crashes), r.async ? " (async export)" : "", static_cast<unsigned long long>(r.digest));
  if (r.digest != again.digest || r.wrong != again.wrong) {
    std::printf("the same seed gave another history the second time: %016llx\n", static_cast<unsigned long long>(again.digest));
    return 1;
  }
  return r.wrong.empty() == (a.mutant == Mutant::kNone) ? 0 : 1;
}

// Sums of many seeds.
struct Sums {
  uint64_t seeds = 0, wrong = 0, virtual_ns = 0, deaths = 0, claims = 0, acks = 0, server_crashes = 0, clones = 0, forked = 0, omitted = 0, budget_lost = 0;
  FaultCounts faults;
  void Add(const RunResult& r) {
    ++seeds;
    wrong += !r.wrong.empty();
    virtual_ns += r.virtual_ns, deaths += r.deaths, claims += r.claims, acks += r.acks, server_crashes += r.server_crashes, clones += r.clones, forked += r.forked;
    omitted += r.omitted, budget_lost += r.budget_lost;
    faults += r.faults;
  }
};

// One line of JSON, so that many processes can be added up.
std::string SummaryLine(const Arguments& a, const Sums& s, double seconds) {
  const auto rounded = [](double v) { return std::round(v * 100) / 100; };
  OrderedJson faults = OrderedJson::object();
  for (size_t i = 0; i < kFaults; ++i) faults[FaultName(static_cast<Fault>(i))] = s.faults.Of(static_cast<Fault>(i));
  OrderedJson line = OrderedJson::object();
  for (const MutantInfo& m : Mutants()) {
    if (m.mutant == a.mutant) line["mutant"] = m.name;
  }
  const OrderedJson sums = {{"first", a.first}, {"seeds", s.seeds}, {"wrong", s.wrong}, {"virtual_hours", rounded(static_cast<double>(s.virtual_ns) / 3.6e12)},
                            {"deaths", s.deaths}, {"server_crashes", s.server_crashes}, {"clones", s.clones}, {"forked", s.forked}, {"omitted", s.omitted}, {"budget_lost", s.budget_lost}, {"claims", s.claims},
                            {"acknowledged", s.acks}, {"seconds", rounded(seconds)}, {"seeds_a_second", rounded(static_cast<double>(s.seeds) / seconds)},
                            {"faults", faults}};
  line.update(sums);
  return line.dump();
}

// Kinds of faults that never happened, one line each.
uint64_t SayWhatNeverHappened(const Sums& s) {
  uint64_t missing = 0;
  for (size_t i = 0; i < kFaults; ++i) {
    if (s.faults.Of(static_cast<Fault>(i)) > 0) continue;
    std::printf("never happened: %s\n", FaultName(static_cast<Fault>(i)));
    ++missing;
  }
  return missing;
}

int RunMany(const Arguments& a) {
  const RealClock clock;
  const uint64_t begin = clock.MonotonicNs();
  Sums sums;
  for (uint64_t seed = a.first; seed < a.first + a.seeds; ++seed) {
    g_seed = seed;
    ::alarm(kSeedSecondsMax);
    const RunResult r = RunSeed({.seed = seed, .trace = false, .mutant = a.mutant, .deep = seed % 16 == 0});
    sums.Add(r);
    if (r.wrong.empty()) continue;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), r.wrong.c_str());
    std::fflush(stdout);
    if (a.mutant != Mutant::kNone) break;
  }
  ::alarm(0);
  const uint64_t missing = a.all_faults ? SayWhatNeverHappened(sums) : 0;
  std::printf("%s\n", SummaryLine(a, sums, static_cast<double>(clock.MonotonicNs() - begin) / 1e9).c_str());
  return missing == 0 && (sums.wrong == 0) == (a.mutant == Mutant::kNone) ? 0 : 1;
}

int RunScale(const Arguments& a) {
  std::vector<ScaleRow> rows;
  std::printf("%s\n", ScaleHeader().c_str());
  for (const uint32_t nodes : a.nodes) {
    const auto samples = static_cast<uint32_t>(std::max<uint64_t>(1, a.scale / nodes));
    rows.push_back(MeasureScale(nodes, samples, a.deaths ? Deaths::kMeasured : Deaths::kNotMeasured));
    std::printf("%s\n", ScaleText(rows.back()).c_str());
    std::fflush(stdout);
  }
  PosixFileSystem fs;
  const auto file = fs.Create("scale.svg", 0644);
  const std::string svg = ScaleSvg(rows);
  return file.ok() && (*file)->Append(AsBytes(svg)).ok() && (*file)->Close().ok() ? 0 : 1;
}

}  // namespace
}  // namespace holdfast::sim

int main(int argc, char** argv) {
  using namespace holdfast::sim;
  const Arguments a = Parse(argc, argv);
  // Thousands of environments and codecs come and go: their memory is kept instead of being mapped anew each time.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  if (a.usage) return std::fputs(kUsage, stderr), 2;
  if (a.list) {
    for (const MutantInfo& m : Mutants()) std::printf("%s%s\n", m.name, m.in_code ? " (holdfast-sim-mutants)" : "");
    return 0;
  }
  if (a.scale > 0) return RunScale(a);
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGALRM}) std::signal(signal, SayWhichSeed);
  return a.one ? RunOne(a) : RunMany(a);
}
