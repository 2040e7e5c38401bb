// SPDX-License-Identifier: Apache-2.0
//
// fork, exec and one poll loop. Input goes through a socket pair, so that a helper that dies early is EPIPE and not SIGPIPE.
#include "calib/tokens/helper_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <utility>

#include "ledger/base/file_system.h"

namespace holdfast {
namespace {

constexpr size_t kErrorTailBytes = 16u << 10;
constexpr int kStopPollMs = 200;

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { Close(); }
  int get() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void Close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

struct Channel {  // ours: non-blocking; theirs: becomes a standard stream of the child
  Fd ours, theirs;
};

enum class Direction { kToChild, kFromChild };

Result<Channel> MakeChannel(Direction direction) {
  int fds[2];
  const int rc = direction == Direction::kToChild ? ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)
                                                  : ::pipe2(fds, O_CLOEXEC);
  if (rc != 0) return ErrnoError(errno, "making a pipe for the tokenizer helper");
  Channel channel{Fd(fds[0]), Fd(fds[1])};
  ::fcntl(channel.ours.get(), F_SETFL, O_NONBLOCK);
  return channel;
}

// Only async-signal-safe calls: the parent may have threads.
[[noreturn]] void ChildMain(char* const* argv, int in, int out, int err, int report, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);  // it died before the line above
  for (int sig = 1; sig < NSIG; ++sig) ::signal(sig, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::dup2(in, 0) == 0 && ::dup2(out, 1) == 1 && ::dup2(err, 2) == 2) ::execvp(argv[0], argv);
  const int failure = errno;
  [[maybe_unused]] const ssize_t n = ::write(report, &failure, sizeof(failure));
  ::_exit(127);
}

// Reads what is there. False at the end of the stream.
bool Drain(int fd, std::string* to) {
  std::array<char, 65536> buffer;
  while (true) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n > 0) {
      to->append(buffer.data(), static_cast<size_t>(n));
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    return n < 0 && errno == EAGAIN;
  }
}

// Writes what fits. False when all is written or nobody reads any more.
bool Feed(int fd, std::string_view* rest) {
  while (!rest->empty()) {
    const ssize_t n = ::send(fd, rest->data(), rest->size(), MSG_NOSIGNAL);
    if (n >= 0) {
      rest->remove_prefix(static_cast<size_t>(n));
    } else if (errno != EINTR) {
      return errno == EAGAIN;
    }
  }
  return false;
}

class Child {
 public:
  static Result<Child> Start(const std::vector<std::string>& argv) {
    Child child;
    HOLDFAST_ASSIGN(Channel in, MakeChannel(Direction::kToChild));
    HOLDFAST_ASSIGN(Channel out, MakeChannel(Direction::kFromChild));
    HOLDFAST_ASSIGN(Channel err, MakeChannel(Direction::kFromChild));
    int report[2];
    if (::pipe2(report, O_CLOEXEC) != 0) return ErrnoError(errno, "making a pipe for the tokenizer helper");
    Fd report_read(report[0]), report_write(report[1]);
    std::vector<char*> args;
    for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
    args.push_back(nullptr);
    const pid_t parent = ::getpid();
    child.pid_ = ::fork();
    if (child.pid_ < 0) return ErrnoError(errno, "starting " + argv[0]);
    if (child.pid_ == 0) ChildMain(args.data(), in.theirs.get(), out.theirs.get(), err.theirs.get(), report_write.get(), parent);
    report_write.Close();
    int failure = 0;
    ssize_t n;
    while ((n = ::read(report_read.get(), &failure, sizeof(failure))) < 0 && errno == EINTR) {
    }
    if (n == static_cast<ssize_t>(sizeof(failure))) return ErrnoError(failure, "starting " + argv[0]);
    child.in_ = std::move(in.ours);
    child.out_ = std::move(out.ours);
    child.err_ = std::move(err.ours);
    return child;
  }

  Child(Child&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)), in_(std::move(other.in_)), out_(std::move(other.out_)), err_(std::move(other.err_)) {}
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    Wait();
  }

  // Moves bytes until both outputs are closed.
  Status Exchange(std::string_view input, size_t max_output, const std::atomic<bool>* stop, ProcessOutput* result) {
    while (out_.open() || err_.open()) {
      pollfd fds[3] = {{in_.get(), POLLOUT, 0}, {out_.get(), POLLIN, 0}, {err_.get(), POLLIN, 0}};
      if (stop != nullptr && stop->load()) return Stopped("stopped");
      if (::poll(fds, 3, stop == nullptr ? -1 : kStopPollMs) < 0) {
        if (errno == EINTR) continue;
        return ErrnoError(errno, "waiting for the tokenizer helper");
      }
      if (fds[0].revents != 0 && !Feed(in_.get(), &input)) in_.Close();
      if (fds[1].revents != 0 && !Drain(out_.get(), &result->out)) out_.Close();
      if (fds[2].revents != 0 && !Drain(err_.get(), &result->err)) err_.Close();
      if (result->err.size() > kErrorTailBytes) result->err.erase(0, result->err.size() - kErrorTailBytes);
      if (result->out.size() > max_output) {
        return Exhausted("the tokenizer helper wrote more than " + std::to_string(max_output >> 20) + " MiB");
      }
    }
    return OkStatus();
  }

  // Wait status of the child, or -1 when somebody else reaped it.
  int Wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0) {
      if (errno != EINTR) {
        status = -1;
        break;
      }
    }
    pid_ = -1;
    return status;
  }

 private:
  Child() = default;
  pid_t pid_ = -1;
  Fd in_, out_, err_;
};

}  // namespace

Result<ProcessOutput> RunProcess(const std::vector<std::string>& argv, std::string_view input, size_t max_output, const std::atomic<bool>* stop) {
  ProcessOutput result;
  HOLDFAST_ASSIGN(Child child, Child::Start(argv));
  HOLDFAST_TRY(child.Exchange(input, max_output, stop, &result));
  const int status = child.Wait();
  if (status >= 0 && WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (status >= 0 && WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

std::string DefaultPython() {
  const char* python = std::getenv("HOLDFAST_PYTHON");
  return python != nullptr && *python != '\0' ? python : "python3";
}

Result<std::string> DefaultHelper() {
  std::array<char, PATH_MAX> path;
  const ssize_t n = ::readlink("/proc/self/exe", path.data(), path.size());
  if (n <= 0 || static_cast<size_t>(n) == path.size()) return ErrnoError(errno, "reading /proc/self/exe");
  return JoinPath(DirName(std::string(path.data(), static_cast<size_t>(n))), "holdfast-tokenize");
}

}  // namespace holdfast
