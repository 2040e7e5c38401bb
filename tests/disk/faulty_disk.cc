// SPDX-License-Identifier: Apache-2.0
//
// A disk that fails, preloaded into the real programs (LD_PRELOAD): calls on files below one directory return errors, write less than asked, read
// other bytes, lose what was not synced. What was synced and what was not is written down, so that a power cut can be played afterwards.
//
//   FAULTY_DIR       the directory, absolute
//   FAULTY_RULES     call:fault:chance[,...]    calls: open (for writing), read, write, fsync, link, rename
//                    faults: enospc, edquot, eio, estale; write:short; read:flip (one bit); fsync:lose (EIO, what was written since the
//                    last fsync is zeros, and the next fsync says 0: as Linux does after a failed write-back); fsync:lie (0, nothing synced),
//                    fsync:slow (takes 50 ms before it counts, so that power cuts fall into it)
//   FAULTY_SEED      of the dice; each process mixes its start into it
//   FAULTY_JOURNAL   file to which is appended: "D ino" written to, "S ino size" synced, "N path" a new name, "R from\tto", "Y dir" directory synced
//
// Faults are rare enough by `chance` for a program to make progress; FAULTY_MAX (default: no limit) ends them in each process after so many.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace {

template <class F>
F Real(const char* name) {
  return reinterpret_cast<F>(::dlsym(RTLD_NEXT, name));
}

struct Rule {
  std::string call, fault;
  double chance = 0;
};

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

struct Disk {
  std::string dir = Env("FAULTY_DIR");
  std::vector<Rule> rules;
  int journal = -1;
  long left = LONG_MAX;
  std::mt19937_64 rng;
  std::mutex mutex;
  struct Open {
    bool ours = false, directory = false, dirty = false;
    off_t synced = 0;
  };
  std::vector<Open> files{4096};

  Disk() {
    std::string text = Env("FAULTY_RULES");
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find(',', at), text.size());
      const std::string one = text.substr(at, end - at);
      const size_t a = one.find(':'), b = one.rfind(':');
      if (a != std::string::npos && b > a) rules.push_back({one.substr(0, a), one.substr(a + 1, b - a - 1), std::atof(one.c_str() + b + 1)});
      at = end + 1;
    }
    if (const std::string max = Env("FAULTY_MAX"); !max.empty()) left = std::atol(max.c_str());
    if (const std::string path = Env("FAULTY_JOURNAL"); !path.empty()) {
      journal = Real<int (*)(const char*, int, ...)>("open")(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    }
    struct timespec now {};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    rng.seed(static_cast<uint64_t>(std::atoll(Env("FAULTY_SEED").c_str())) * 1000003u ^ static_cast<uint64_t>(::getpid()) << 20 ^ static_cast<uint64_t>(now.tv_nsec));
  }

  bool Ours(const char* path) const { return !dir.empty() && path != nullptr && std::strncmp(path, dir.c_str(), dir.size()) == 0; }
  Open* At(int fd) {
    return fd >= 0 && static_cast<size_t>(fd) < files.size() && files[static_cast<size_t>(fd)].ours ? &files[static_cast<size_t>(fd)] : nullptr;
  }
  void Note(const std::string& line) const {
    if (journal >= 0) (void)!Real<ssize_t (*)(int, const void*, size_t)>("write")(journal, (line + "\n").data(), line.size() + 1);
  }
  // The fault that this call meets, or nullptr.
  const Rule* Meets(const char* call) {
    std::lock_guard lock(mutex);
    for (const Rule& r : rules) {
      if (left > 0 && r.call == call && std::uniform_real_distribution<>()(rng) < r.chance) return --left, &r;
    }
    return nullptr;
  }
  uint64_t Dice(uint64_t n) {
    std::lock_guard lock(mutex);
    return n == 0 ? 0 : rng() % n;
  }
};

Disk& D() {
  static Disk* disk = new Disk;   // never destroyed: other threads may still write at exit
  return *disk;
}

int Fails(const Rule& r) {
  errno = r.fault == "enospc" ? ENOSPC : r.fault == "edquot" ? EDQUOT : r.fault == "estale" ? ESTALE : EIO;
  return -1;
}

int Opened(int fd, const char* path, int flags, bool existed) {
  Disk& d = D();
  if (fd < 0 || static_cast<size_t>(fd) >= d.files.size()) return fd;
  struct stat st {};
  ::fstat(fd, &st);
  d.files[static_cast<size_t>(fd)] = {d.Ours(path), S_ISDIR(st.st_mode), false, existed && (flags & O_TRUNC) == 0 ? st.st_size : 0};
  if (d.Ours(path) && !existed && (flags & O_CREAT) != 0) d.Note(std::string("N ") + path);
  return fd;
}

std::string PathOf(int fd) {
  char link[PATH_MAX];
  const ssize_t n = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), link, sizeof link);
  return n > 0 ? std::string(link, static_cast<size_t>(n)) : "";
}

ssize_t Wrote(int fd, size_t* count) {   // the answer, or 1: go on
  Disk& d = D();
  Disk::Open* file = d.At(fd);
  if (file == nullptr) return 1;
  if (!file->dirty) {
    struct stat st {};
    ::fstat(fd, &st);
    d.Note("D " + std::to_string(st.st_ino));
    file->dirty = true;
  }
  if (const Rule* r = d.Meets("write")) {
    if (r->fault != "short") return Fails(*r);
    *count = *count <= 1 ? *count : 1 + d.Dice(*count - 1);
  }
  return 1;
}

ssize_t HasRead(int fd, void* data, ssize_t n) {
  Disk& d = D();
  if (n <= 0 || d.At(fd) == nullptr) return n;
  const Rule* r = d.Meets("read");
  if (r == nullptr) return n;
  if (r->fault != "flip") return Fails(*r);
  static_cast<unsigned char*>(data)[d.Dice(static_cast<uint64_t>(n))] ^= static_cast<unsigned char>(1u << d.Dice(8));
  return n;
}

int Synced(int fd, const char* name) {
  Disk& d = D();
  Disk::Open* file = d.At(fd);
  const auto real = Real<int (*)(int)>(name);
  if (file == nullptr) return real(fd);
  const Rule* r = d.Meets("fsync");
  if (r != nullptr && r->fault == "slow") {
    ::usleep(50'000);
    r = nullptr;
  }
  if (file->directory) {
    if (r != nullptr) return r->fault == "lie" ? 0 : Fails(*r);
    d.Note("Y " + PathOf(fd));
    return real(fd);
  }
  struct stat st {};
  ::fstat(fd, &st);
  if (r != nullptr) {
    if (r->fault == "lie") return 0;
    if (r->fault == "lose") {
      const std::string path = PathOf(fd);
      (void)!::truncate(path.c_str(), file->synced);
      (void)!::truncate(path.c_str(), st.st_size);
      file->dirty = false;
    }
    return Fails(*r);
  }
  file->dirty = false;
  file->synced = st.st_size;
  const int status = real(fd);
  d.Note("S " + std::to_string(st.st_ino) + " " + std::to_string(st.st_size));
  return status;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(args, mode_t) : 0;
  va_end(args);
  Disk& d = D();
  const bool ours = d.Ours(path), existed = ours && ::access(path, F_OK) == 0;
  if (ours && (flags & O_ACCMODE) != O_RDONLY) {
    if (const Rule* r = d.Meets("open")) return Fails(*r);
  }
  return Opened(Real<int (*)(const char*, int, ...)>("open")(path, flags, mode), path, flags, existed);
}
int open64(const char* path, int flags, ...) {
  va_list args;
  va_start(args, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(args, mode_t) : 0;
  va_end(args);
  return open(path, flags, mode);
}
int close(int fd) {
  if (Disk::Open* file = D().At(fd)) *file = {};
  return Real<int (*)(int)>("close")(fd);
}
ssize_t write(int fd, const void* data, size_t n) {
  const ssize_t answer = Wrote(fd, &n);
  return answer < 0 ? answer : Real<ssize_t (*)(int, const void*, size_t)>("write")(fd, data, n);
}
ssize_t pwrite(int fd, const void* data, size_t n, off_t at) {
  const ssize_t answer = Wrote(fd, &n);
  return answer < 0 ? answer : Real<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite")(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void* data, size_t n, off_t at) { return pwrite(fd, data, n, at); }
ssize_t read(int fd, void* data, size_t n) { return HasRead(fd, data, Real<ssize_t (*)(int, void*, size_t)>("read")(fd, data, n)); }
ssize_t pread(int fd, void* data, size_t n, off_t at) { return HasRead(fd, data, Real<ssize_t (*)(int, void*, size_t, off_t)>("pread")(fd, data, n, at)); }
ssize_t pread64(int fd, void* data, size_t n, off_t at) { return pread(fd, data, n, at); }
int fsync(int fd) { return Synced(fd, "fsync"); }
int fdatasync(int fd) { return Synced(fd, "fdatasync"); }
int link(const char* from, const char* to) {
  Disk& d = D();
  const bool ours = d.Ours(to);
  if (ours) {
    if (const Rule* r = d.Meets("link")) return Fails(*r);
  }
  const int status = Real<int (*)(const char*, const char*)>("link")(from, to);
  if (ours && status == 0) d.Note(std::string("N ") + to);
  return status;
}
int rename(const char* from, const char* to) {
  Disk& d = D();
  const bool ours = d.Ours(to);
  if (ours) {
    if (const Rule* r = d.Meets("rename")) return Fails(*r);
  }
  const int status = Real<int (*)(const char*, const char*)>("rename")(from, to);
  if (ours && status == 0) d.Note(std::string("R ") + from + "\t" + to);
  return status;
}

// renameat2 has no wrapper that everybody uses.
long syscall(long number, ...) {
  va_list args;
  va_start(args, number);
  long a[6];
  for (long& x : a) x = va_arg(args, long);
  va_end(args);
  Disk& d = D();
  const char* to = number == SYS_renameat2 ? reinterpret_cast<const char*>(a[3]) : nullptr;
  if (d.Ours(to)) {
    if (const Rule* r = d.Meets("rename")) return Fails(*r);
  }
  const long status = Real<long (*)(long, ...)>("syscall")(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (d.Ours(to) && status == 0) d.Note(std::string("R ") + reinterpret_cast<const char*>(a[1]) + "\t" + to);
  return status;
}

}  // extern "C"
