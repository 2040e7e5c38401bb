// SPDX-License-Identifier: Apache-2.0
//
// Runs a fuzzer without libFuzzer, in any build: each file named on the command line (or in a directory named there) as it is, and a fixed
// number of deterministic mutations of it.
//
//   NAME_fuzz [--mutations N] SEED...     replays; exit status 1 on a finding, with the input in ./NAME_fuzz.finding
//
// Mutations depend on the seed's place and content alone, so that what fails once fails again. Allocations of more than kAllocationMax
// through operator new are findings, too: inputs are small, so that whoever asks for so much has believed a header.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz.h"

namespace {

using holdfast::Bytes;

constexpr size_t kAllocationMax = 64u << 20;
constexpr size_t kInputMax = 64u << 10;
constexpr long kMutationsDefault = 300;

bool g_running = false;         // inside the fuzzer: its allocations are watched
Bytes g_input;                  // for the signal handler
std::string g_finding;

uint64_t Mix(uint64_t* state) {  // splitmix64
  uint64_t z = *state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// A crash ends as exit status 1, with the input kept. Only what a signal handler may do.
void OnCrash(int sig) {
  const int fd = ::open(g_finding.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0644);
  bool kept = fd >= 0 && ::write(fd, g_input.data(), g_input.size()) == static_cast<ssize_t>(g_input.size());
  const char* text = kept ? "replay: a finding, its input lies in " : "replay: a finding, its input could not be kept in ";
  kept = ::write(2, text, std::strlen(text)) > 0 && ::write(2, g_finding.c_str(), g_finding.size()) > 0 && ::write(2, "\n", 1) > 0;
  ::_exit(sig == SIGALRM ? 2 : 1);
}

Bytes ReadWhole(const std::string& path) {
  holdfast::PosixFileSystem fs;
  auto bytes = fs.ReadFile(path, kInputMax);
  if (bytes.ok()) return *bytes;
  std::fprintf(stderr, "replay: %s\n", bytes.error().message.c_str());
  std::exit(2);
}

std::vector<Bytes> ReadSeeds(int argc, char** argv, int first) {
  std::vector<Bytes> seeds;
  for (int i = first; i < argc; ++i) {
    std::vector<std::string> paths = {argv[i]};
    if (DIR* dir = ::opendir(argv[i])) {
      paths.clear();
      while (const dirent* entry = ::readdir(dir)) {
        if (entry->d_name[0] != '.') paths.push_back(std::string(argv[i]) + "/" + entry->d_name);
      }
      ::closedir(dir);
      std::sort(paths.begin(), paths.end());
    }
    for (const std::string& path : paths) seeds.push_back(ReadWhole(path));
  }
  return seeds;
}

// ---- mutations ----

constexpr const char* kPieces[] = {"{", "}", "[", "]", "\"", ",", ":", "null", "true", "-1", "0", "1e999", "1.5", "18446744073709551615",
                                   "18446744073709551616", "\\u0000", "\\ud800", "\xff", "\xef\xbb\xbf", "\n", "../", "\x1b[2J"};
constexpr uint64_t kNumbers[] = {0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 0xffffffffffffffff};

void Overwrite(Bytes* b, size_t at, uint64_t value, size_t width) {
  for (size_t i = 0; i < width && at + i < b->size(); ++i) (*b)[at + i] = static_cast<uint8_t>(value >> (8 * i));
}

void MutateOnce(Bytes* b, const Bytes& other, uint64_t* random) {
  const size_t at = b->empty() ? 0 : Mix(random) % b->size();
  const auto here = b->begin() + static_cast<ptrdiff_t>(at);
  const size_t some = std::min(b->size() - at, static_cast<size_t>(Mix(random) % 24));
  switch (Mix(random) % 8) {
    case 0: if (!b->empty()) *here ^= static_cast<uint8_t>(1u << Mix(random) % 8); break;
    case 1: if (!b->empty()) *here = static_cast<uint8_t>(Mix(random)); break;
    case 2: b->erase(here, here + static_cast<ptrdiff_t>(some)); break;
    case 3: {
      const std::string_view piece = kPieces[Mix(random) % std::size(kPieces)];
      b->insert(here, piece.begin(), piece.end());
      break;
    }
    case 4: Overwrite(b, at, kNumbers[Mix(random) % std::size(kNumbers)], size_t{1} << Mix(random) % 4); break;
    case 5: {
      const Bytes again(here, here + static_cast<ptrdiff_t>(some));
      b->insert(here, again.begin(), again.end());
      break;
    }
    case 6: b->resize(at); break;
    default: {
      if (other.empty()) break;
      const size_t from = Mix(random) % other.size();
      const size_t n = std::min(other.size() - from, static_cast<size_t>(Mix(random) % 64));
      b->insert(here, other.begin() + static_cast<ptrdiff_t>(from), other.begin() + static_cast<ptrdiff_t>(from + n));
    }
  }
}

Bytes Mutated(const std::vector<Bytes>& seeds, size_t seed, uint64_t number) {
  uint64_t random = seed << 32 | number;
  Bytes b = seeds[seed];
  for (uint64_t n = 1 + Mix(&random) % 3; n > 0; --n) MutateOnce(&b, seeds[Mix(&random) % seeds.size()], &random);
  if (b.size() > kInputMax) b.resize(kInputMax);
  return b;
}

void RunOne(Bytes input) {
  g_input = std::move(input);
  const Bytes exact(g_input);  // not a byte more than the fuzzer may read
  g_running = true;
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  g_running = false;
}

}  // namespace

void* operator new(size_t size) {
  if (g_running && size > kAllocationMax) {
    g_running = false;
    std::fprintf(stderr, "replay: %zu bytes were asked for at once\n", size);
    std::abort();
  }
  void* p = std::malloc(size == 0 ? 1 : size);
  if (p == nullptr) std::abort();
  return p;
}
// std::stable_sort asks this way; left to the library, it would not belong to the delete below.
void* operator new(size_t size, const std::nothrow_t&) noexcept { return operator new(size); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

int main(int argc, char** argv) {
  int first = 1;
  long mutations = kMutationsDefault;
  if (argc > 2 && std::strcmp(argv[1], "--mutations") == 0) {
    mutations = std::strtol(argv[2], nullptr, 10);
    first = 3;
  }
  g_finding = holdfast::BaseName(argv[0]) + ".finding";
  for (const int sig : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) ::signal(sig, OnCrash);
  const std::vector<Bytes> seeds = ReadSeeds(argc, argv, first);
  if (seeds.empty()) {
    std::fprintf(stderr, "usage: %s [--mutations N] SEED...\n", argv[0]);
    return 2;
  }
  for (size_t i = 0; i < seeds.size(); ++i) {
    RunOne(seeds[i]);
    for (long k = 0; k < mutations; ++k) RunOne(Mutated(seeds, i, static_cast<uint64_t>(k)));
  }
  std::printf("%zu seeds, %zu inputs\n", seeds.size(), seeds.size() * static_cast<size_t>(mutations + 1));
  return 0;
}
