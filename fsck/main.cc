// SPDX-License-Identifier: Apache-2.0
//
// fsck.holdfast: the command line of the fsck library, which `jobctl fsck` is too.
#include <getopt.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "fsck/command.h"
#include "ledger/base/units.h"

namespace holdfast {
namespace {

constexpr char kHelp[] = R"(Usage: fsck.holdfast [OPTION]... DIR
Holds DIR, a run directory or the root of a cluster with all its jobs, against its invariants. Without --repair and --undo it reads only, and
may run beside a working job.

  -d, --deep         also read every pack, source file and output file
      --rate=SIZE    with --deep: read no more than SIZE a second, e.g. 200MB
      --repair       mend what can be mended: VOID records, tombstones, moves to quarantine/; deletes nothing
      --dry-run      say what --repair would do, and do nothing
      --salvage      with --repair or --dry-run: of damaged slots, the records that hold by their own checksums are said again
      --reproduce=N  quantize N random layers once more from the source and compare the bytes
      --undo=ID      take back the repair of this id, byte for byte
  -j, --threads=N    threads for --deep (default: all)
      --json         one JSON document on standard output
  -h, --help         this text

EXAMPLE
  fsck.holdfast --deep /mnt/nfs/Mistral-Large-NVFP4.run

EXIT STATUS
  The sum of
    0   clean (warnings and notes do not count)
    1   errors corrected
    2   corrected, and work is open again: run jobctl resume
    4   errors left
    8   something could not be read or done: the answer is incomplete
   16   wrong usage
   32   interrupted by a signal
   64   committed data is lost: a slot is missing, damaged or out of its chain

Every finding has a stable code; docs/fsck.md says what each means.
)";

struct CommandLine {
  FsckRequest request;
  bool help = false, bad = false;
};

constexpr option kOptions[] = {{"deep", no_argument, nullptr, 'd'}, {"threads", required_argument, nullptr, 'j'}, {"json", no_argument, nullptr, 'J'},
                               {"repair", no_argument, nullptr, 'R'}, {"dry-run", no_argument, nullptr, 'N'}, {"rate", required_argument, nullptr, 'r'}, {"salvage", no_argument, nullptr, 'S'}, {"undo", required_argument, nullptr, 'U'}, {"reproduce", required_argument, nullptr, 'P'},
                               {"help", no_argument, nullptr, 'h'}, {}};

CommandLine Parse(int argc, char** argv) {
  CommandLine line;
  FsckRequest& r = line.request;
  r.options.check.threads = std::max(1u, std::thread::hardware_concurrency());
  for (int c = 0; (c = getopt_long(argc, argv, "dj:h", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'd': r.options.check.deep = true; break;
      case 'J': r.json = true; break;
      case 'R': r.repair = true; break;
      case 'N': r.dry_run = true; break;
      case 'r': {
        const auto rate = ParseSize(optarg);
        line.bad |= !rate.ok();
        if (rate.ok()) r.options.check.rate = *rate;
        break;
      }
      case 'S': r.options.check.salvage = true; break;
      case 'U': r.undo = optarg; break;
      case 'h': line.help = true; break;
      case 'j':
      case 'P': {
        char* end = nullptr;
        const unsigned long n = std::strtoul(optarg, &end, 10);
        line.bad |= *end != '\0' || n == 0 || n > 1024;
        (c == 'j' ? r.options.check.threads : r.options.check.reproduce) = static_cast<uint32_t>(n);
        break;
      }
      default: line.bad = true;
    }
  }
  line.bad |= !line.help && r.options.check.rate > 0 && !r.options.check.deep;
  line.bad |= !line.help && (optind + 1 != argc || (!r.undo.empty() && r.repair) || (r.options.check.salvage && !r.repair && !r.dry_run));
  if (optind < argc) r.dir = argv[optind];
  while (r.dir.size() > 1 && r.dir.back() == '/') r.dir.pop_back();
  return line;
}

int Main(int argc, char** argv) {
  CommandLine line = Parse(argc, argv);
  if (line.bad) {
    std::fprintf(stderr, "fsck.holdfast: give one run directory or root, not --repair together with --undo, --salvage with --repair or --dry-run only, --rate (a size such as 200MB) with --deep only; try `fsck.holdfast --help`\n");
    return kFsckUsage;
  }
  if (line.help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  return RunFsckCommand(std::move(line.request));
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) { return holdfast::Main(argc, argv); }
