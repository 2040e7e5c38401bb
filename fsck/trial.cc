// SPDX-License-Identifier: Apache-2.0
#include "fsck/trial.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "ledger/segment/segment.h"

namespace holdfast::fsck {
namespace {

// In the child: says which place it is at, then parses it.
[[noreturn]] void TryAll(FileSystem& fs, const RunLayout& layout, const std::string& stream, const std::vector<uint32_t>& slots, uint32_t from, int out) {
  for (const int sig : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) ::signal(sig, SIG_DFL);   // no handler of ours shall report it
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

}  // namespace holdfast::fsck
