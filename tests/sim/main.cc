// SPDX-License-Identifier: Apache-2.0
//
// holdfast-sim: runs seeds, or one seed with everything that happens.
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "ledger/base/clock.h"
#include "ledger/base/file_system.h"
#include "tests/sim/scale.h"
#include "tests/sim/scenario.h"

namespace holdfast::sim {
namespace {

constexpr char kUsage[] =
    "usage: holdfast-sim [--seed N [--trace]] [--seeds N] [--first N] [--mutant NAME|list] [--scale CELLS [--nodes N]]\n\n"
    "Simulates whole clusters, one history a seed. Without arguments: 1000 seeds.\n"
    "  --seed N         this one; twice, and both histories must be the same\n"
    "  --trace          every call of every process, with its virtual time\n"
    "  --seeds N        seeds first .. first+N-1 (default 1000)\n"
    "  --first N        default 1\n"
    "  --scale CELLS    how costs grow from 1 to 64 nodes with about CELLS cells: a table, and scale.svg\n"
    "  --nodes N        with --scale: up to N nodes\n"
    "  --mutant NAME    a broken variant: runs until it is caught, at most --seeds\n\n"
    "EXIT STATUS: 0 nothing is wrong (with --mutant: it was caught), 1 something is, 2 usage.\n";

struct Arguments {
  uint64_t first = 1, seeds = 1000, scale = 0, nodes = 64;
  bool one = false, trace = false, list = false, usage = false;
  Mutant mutant = Mutant::kNone;
};

Arguments Parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (arg == "--trace") {
      a.trace = true;
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
    else if (arg == "--nodes") a.nodes = std::strtoull(value.c_str(), nullptr, 10);
    else if (arg == "--mutant" && value == "list") a.list = true;
    else if (arg == "--mutant" && MutantNamed(value)) a.mutant = *MutantNamed(value);
    else a.usage = true;
  }
  return a;
}

int RunOne(const Arguments& a) {
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

int RunMany(const Arguments& a) {
  const RealClock clock;
  const uint64_t begin = clock.MonotonicNs();
  uint64_t bad = 0, virtual_s = 0, deaths = 0, claims = 0, acks = 0, crashes = 0, clones = 0, forked = 0, ran = 0;
  for (uint64_t seed = a.first; seed < a.first + a.seeds; ++seed) {
    const RunResult r = RunSeed({.seed = seed, .trace = false, .mutant = a.mutant, .deep = seed % 16 == 0});
    ++ran;
    virtual_s += r.virtual_ns / 1'000'000'000, deaths += r.deaths, claims += r.claims, acks += r.acks, crashes += r.server_crashes, clones += r.clones, forked += r.forked;
    if (r.wrong.empty()) continue;
    ++bad;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), r.wrong.c_str());
    std::fflush(stdout);
    if (a.mutant != Mutant::kNone) break;
  }
  const double seconds = static_cast<double>(clock.MonotonicNs() - begin) / 1e9;
  std::printf("%llu seeds in %.1f s (%.1f a second): %llu h of virtual time, %llu deaths, %llu clones (%llu ended as such), %llu server crashes, %llu claims, %llu acknowledged records; %llu wrong\n",
              static_cast<unsigned long long>(ran), seconds, static_cast<double>(ran) / seconds, static_cast<unsigned long long>(virtual_s / 3600),
              static_cast<unsigned long long>(deaths), static_cast<unsigned long long>(clones), static_cast<unsigned long long>(forked), static_cast<unsigned long long>(crashes), static_cast<unsigned long long>(claims),
              static_cast<unsigned long long>(acks), static_cast<unsigned long long>(bad));
  return (bad == 0) == (a.mutant == Mutant::kNone) ? 0 : 1;
}

int RunScale(const Arguments& a) {
  std::vector<ScaleRow> rows;
  std::printf("%s\n", ScaleHeader().c_str());
  for (uint32_t nodes = 1; nodes <= a.nodes; nodes *= 2) {
    rows.push_back(MeasureScale(nodes, static_cast<uint32_t>(std::max<uint64_t>(1, a.scale / nodes)), Death::kOne));
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
  return a.one ? RunOne(a) : RunMany(a);
}
