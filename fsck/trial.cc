// SPDX-License-Identifier: Apache-2.0
#include "fsck/trial.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "ledger/segment/segment.h"

namespace holdfast::fsck {
namespace {

constexpr unsigned kWalkSeconds = 30;

void DieOfSignals() {
  for (const int sig : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGALRM, SIGPIPE}) ::signal(sig, SIG_DFL);   // no handler of ours shall report it
}

bool WriteAll(int out, const void* data, size_t size) {
  const auto* at = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const ssize_t n = ::write(out, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

bool ReadAll(int in, void* data, size_t size) {
  auto* at = static_cast<uint8_t*>(data);
  while (size > 0) {
    const ssize_t n = ::read(in, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

// An entry on its way from the child; all zero: the walk came to its end.
struct Frame {
  uint64_t at = 0, key = 0, value = 0;
};

[[noreturn]] void Walk(ByteSpan env, uint32_t limit, int out) {
  DieOfSignals();
  ::alarm(kWalkSeconds);
  uint32_t count = 0;
  Bytes last;
  const Status walked = ReadEnv(env, [&](ByteSpan key, ByteSpan value) -> Status {
    const bool ascends = count == 0 || std::lexicographical_compare(last.begin(), last.end(), key.begin(), key.end());
    if (count >= limit || !ascends || key.empty() || key.size() > kRecordKeyBytes || value.size() > env.size()) return Corrupt("");
    ++count;
    last.assign(key.begin(), key.end());
    const Frame f{reinterpret_cast<uintptr_t>(value.data()), key.size(), value.size()};
    const bool told = WriteAll(out, &f, sizeof f) && WriteAll(out, key.data(), key.size()) && WriteAll(out, value.data(), value.size());
    return told ? OkStatus() : Corrupt("");
  });
  const Frame end;
  ::_exit(walked.ok() && WriteAll(out, &end, sizeof end) ? 0 : 1);
}

// Until the child's end, or until it says what cannot be.
std::vector<RawEntry> Listen(int in, size_t env_bytes, uint32_t limit, bool* whole) {
  std::vector<RawEntry> entries;
  size_t total = 0;
  for (Frame f; entries.size() <= limit && ReadAll(in, &f, sizeof f);) {
    *whole = f.key == 0;
    total += f.value;
    if (*whole || f.key > kRecordKeyBytes || f.value > env_bytes || total > 4 * env_bytes) break;
    RawEntry e{Bytes(f.key), Bytes(f.value), f.at};
    if (!ReadAll(in, e.key.data(), e.key.size()) || !ReadAll(in, e.value.data(), e.value.size())) break;
    entries.push_back(std::move(e));
  }
  return entries;
}

// In the child: says which place it is at, then parses it.
[[noreturn]] void TryAll(FileSystem& fs, const RunLayout& layout, const std::string& stream, const std::vector<uint32_t>& slots, uint32_t from, int out) {
  DieOfSignals();
  for (uint32_t i = from; i < slots.size(); ++i) {
    if (::write(out, &i, sizeof i) != static_cast<ssize_t>(sizeof i)) ::_exit(1);
    const auto file = fs.ReadFile(layout.Slot(stream, slots[i]), kSegmentBytesMax);
    const auto trailer = file.ok() ? CheckSegment(*file) : Result<SegmentTrailer>(file.error());
    if (trailer.ok()) (void)DecodeEnv(ByteSpan(*file).first(trailer->env_len), trailer->records).ok();
  }
  ::_exit(0);
}

// The last place that a child named before its end, or `from`.
uint32_t LastPlace(int in, uint32_t from) {
  uint32_t at = 0;
  for (;;) {
    const ssize_t n = ::read(in, &at, sizeof at);
    if (n < 0 && errno == EINTR) continue;
    if (n != static_cast<ssize_t>(sizeof at)) return from;
    from = at;
  }
}

}  // namespace

std::map<uint32_t, int> DeadlySlots(FileSystem& fs, const RunLayout& layout, const std::string& stream, const std::vector<uint32_t>& slots) {
  std::map<uint32_t, int> deadly;
  for (uint32_t from = 0; from < slots.size();) {
    int pipe_fds[2];
    if (::pipe(pipe_fds) != 0) return deadly;
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(pipe_fds[0]);
      TryAll(fs, layout, stream, slots, from, pipe_fds[1]);
    }
    ::close(pipe_fds[1]);
    const uint32_t last = LastPlace(pipe_fds[0], from);
    ::close(pipe_fds[0]);
    if (child < 0) return deadly;
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFSIGNALED(status)) return deadly;
    deadly[slots[last]] = WTERMSIG(status);
    from = last + 1;
  }
  return deadly;
}

std::vector<RawEntry> WalkInChild(ByteSpan env, uint32_t limit, bool* whole) {
  *whole = false;
  int pipe_fds[2];
  if (::pipe(pipe_fds) != 0) return {};
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(pipe_fds[0]);
    Walk(env, limit, pipe_fds[1]);
  }
  ::close(pipe_fds[1]);
  auto entries = child < 0 ? std::vector<RawEntry>() : Listen(pipe_fds[0], env.size(), limit, whole);
  ::close(pipe_fds[0]);   // a child that still writes dies of it
  int status = 0;
  while (child > 0 && ::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return entries;
}

}  // namespace holdfast::fsck
