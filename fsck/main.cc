// SPDX-License-Identifier: Apache-2.0
//
// fsck.holdfast: checks a run directory or a root and changes nothing. `jobctl fsck` is the same library.
#include <getopt.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "fsck/fsck.h"

namespace holdfast {
namespace {

constexpr char kHelp[] = R"(Usage: fsck.holdfast [OPTION]... DIR
Holds DIR, a run directory or the root of a cluster with all its jobs, against its invariants. Reads only, and may run beside a working job.

  -d, --deep         also read every pack, source file and output file
  -j, --threads=N    threads for --deep (default: all)
      --json         one JSON document on standard output
  -h, --help         this text

EXAMPLE
  fsck.holdfast --deep /mnt/nfs/Mistral-Large-NVFP4.run

EXIT STATUS
  The sum of
    0   clean (warnings and notes do not count)
    4   errors found
    8   something could not be read: the answer is incomplete
   16   wrong usage
   64   committed data is lost: a slot is missing, damaged or out of its chain

Every finding has a stable code; docs/fsck.md says what each means.
)";

struct CommandLine {
  std::string dir;
  bool deep = false, json = false, help = false, bad = false;
  uint32_t threads = 0;
};

CommandLine Parse(int argc, char** argv) {
  static const option kOptions[] = {{"deep", no_argument, nullptr, 'd'}, {"threads", required_argument, nullptr, 'j'},
                                    {"json", no_argument, nullptr, 'J'}, {"help", no_argument, nullptr, 'h'}, {}};
  CommandLine line;
  for (int c = 0; (c = getopt_long(argc, argv, "dj:h", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'd': line.deep = true; break;
      case 'J': line.json = true; break;
      case 'h': line.help = true; break;
      case 'j': {
        char* end = nullptr;
        const unsigned long n = std::strtoul(optarg, &end, 10);
        line.bad |= *end != '\0' || n == 0 || n > 1024;
        line.threads = static_cast<uint32_t>(n);
        break;
      }
      default: line.bad = true;
    }
  }
  line.bad |= !line.help && optind + 1 != argc;
  if (optind < argc) line.dir = argv[optind];
  while (line.dir.size() > 1 && line.dir.back() == '/') line.dir.pop_back();
  return line;
}

int Main(int argc, char** argv) {
  const CommandLine line = Parse(argc, argv);
  if (line.bad) {
    std::fprintf(stderr, "fsck.holdfast: give one run directory or root; try `fsck.holdfast --help`\n");
    return kFsckUsage;
  }
  if (line.help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  FsckOptions options;
  options.deep = line.deep;
  options.threads = line.threads != 0 ? line.threads : std::max(1u, std::thread::hardware_concurrency());
  const bool terminal = isatty(STDERR_FILENO) == 1;
  if (terminal) {
    options.on_progress = [](uint64_t done, uint64_t total) {
      std::fprintf(stderr, "\r\033[Kread %.1f of %.1f GB", static_cast<double>(done) / 1e9, static_cast<double>(total) / 1e9);
    };
  }
  PosixFileSystem fs;
  const FsckReport report = RunFsck(fs, line.dir, options);
  if (terminal && line.deep) std::fputs("\r\033[K", stderr);
  const std::string text = line.json ? FsckReportToJson(line.dir, report).dump(2, ' ', false, Json::error_handler_t::replace) + "\n"
                                     : FsckReportToText(line.dir, report);
  std::fputs(text.c_str(), stdout);
  return report.exit_status;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) { return holdfast::Main(argc, argv); }
