// SPDX-License-Identifier: Apache-2.0
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "ledger/base/file_system.h"
#include "ledger/base/past_cache.h"

namespace holdfast {
namespace {

// Local disks. NFS would commit each write on the server before it returns; elsewhere there is nothing to win, or nobody looked.
bool IsOnLocalDisk(int fd) {
  constexpr uint32_t kLocal[] = {0xef53 /* ext4 */, 0x58465342 /* xfs */, 0x9123683e /* btrfs */, 0xf2f52010 /* f2fs */, 0x794c7630 /* overlayfs */};
  struct statfs st {};
  if (::fstatfs(fd, &st) != 0) return false;
  return std::find(std::begin(kLocal), std::end(kLocal), static_cast<uint32_t>(st.f_type)) != std::end(kLocal);
}

bool SetDirect(int fd, bool on) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ::fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

bool IsAligned(const uint8_t* data, uint64_t offset, uint64_t length) {
  return (reinterpret_cast<uintptr_t>(data) | offset | length) % kPastCacheAlign == 0;
}

class PosixWritableFile final : public WritableFile, public PastCache {
 public:
  PosixWritableFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixWritableFile() override {
    if (fd_ >= 0) ::close(fd_);
  }
  Status Append(ByteSpan data) override {
    while (!data.empty()) {
      if (past_cache_ && !IsAligned(data.data(), written_, data.size())) SetPastCache(false);
      const ssize_t n = ::write(fd_, data.data(), data.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EINVAL && past_cache_) {  // this disk wants another alignment
        SetPastCache(false);
        continue;
      }
      if (n < 0) return ErrnoError(errno, "writing " + path_);
      data = data.subspan(static_cast<size_t>(n));
      written_ += static_cast<uint64_t>(n);
    }
    return OkStatus();
  }
  bool GoPastCache() const override {
    if (IsOnLocalDisk(fd_)) SetPastCache(true);
    return past_cache_;
  }
  Status Sync() override {
    if (::fsync(fd_) != 0) return ErrnoError(errno, "fsync of " + path_);
    return OkStatus();
  }
  Status Close() override {
    const int fd = std::exchange(fd_, -1);
    if (fd >= 0 && ::close(fd) != 0) return ErrnoError(errno, "closing " + path_);
    return OkStatus();
  }
  void DropCache() override { ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

 private:
  void SetPastCache(bool on) const { past_cache_ = SetDirect(fd_, on) && on; }
  int fd_;
  std::string path_;
  uint64_t written_ = 0;
  mutable bool past_cache_ = false;  // how to write, not what
};

class PosixReadableFile final : public ReadableFile, public PastCache {
 public:
  PosixReadableFile(int fd, uint64_t size, std::string path) : fd_(fd), size_(size), path_(std::move(path)) {}
  ~PosixReadableFile() override { ::close(fd_); }
  uint64_t size() const override { return size_; }
  Status Read(uint64_t offset, std::span<uint8_t> out) const override {
    bool aligned = true;
    while (!out.empty()) {
      const ssize_t n = ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EINVAL && past_cache_ && std::exchange(aligned, false)) {
        SetDirect(fd_, false);
        continue;
      }
      if (n < 0) return ErrnoError(errno, "reading " + path_);
      if (n == 0) {
        return Corrupt(path_ + ": ends before byte " + std::to_string(offset + out.size()) + " (file of " +
                       std::to_string(size_) + " bytes when opened)");
      }
      offset += static_cast<uint64_t>(n);
      out = out.subspan(static_cast<size_t>(n));
    }
    return OkStatus();
  }
  void DropCache(uint64_t offset, uint64_t length) const override {
    ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_DONTNEED);
  }
  bool GoPastCache() const override {
    past_cache_ = !BeginsInCache() && IsOnLocalDisk(fd_) && SetDirect(fd_, true);
    return past_cache_;
  }

 private:
  // Then the rest mostly is there, too, and memory is faster than any disk.
  bool BeginsInCache() const {
    uint8_t byte = 0;
    iovec one{&byte, 1};
    return ::preadv2(fd_, &one, 1, 0, RWF_NOWAIT) == 1;
  }
  int fd_;
  uint64_t size_;
  std::string path_;
  mutable std::atomic<bool> past_cache_{false};  // was asked for, once
};

}  // namespace

Result<Bytes> FileSystem::ReadFile(const std::string& path, uint64_t max_bytes) {
  HOLDFAST_ASSIGN(auto file, Open(path));
  if (file->size() > max_bytes) {
    return Exhausted(path + ": " + std::to_string(file->size()) + " bytes, more than the " + std::to_string(max_bytes) +
                     " expected of such a file");
  }
  Bytes data(file->size());
  HOLDFAST_TRY(file->Read(0, data));
  return data;
}

Result<bool> FileSystem::Exists(const std::string& path) {
  const auto info = Stat(path);
  if (info.ok()) return true;
  if (info.code() == ErrorCode::kNotFound) return false;
  return info.error();
}

Status FileSystem::Replace(const std::string& from, const std::string& to) {
  return Unsupported("replacing " + to + ": not supported by this file system");
}

Result<std::unique_ptr<WritableFile>> PosixFileSystem::Create(const std::string& path, uint32_t mode) {
  const int fd = ::open(path.c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, static_cast<mode_t>(mode));
  if (fd < 0) return ErrnoError(errno, "creating " + path);
  return std::unique_ptr<WritableFile>(std::make_unique<PosixWritableFile>(fd, path));
}

Result<std::unique_ptr<ReadableFile>> PosixFileSystem::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoError(errno, "opening " + path);
  struct stat st {};
  if (::fstat(fd, &st) != 0) {
    const int err = errno;
    ::close(fd);
    return ErrnoError(err, "stat of " + path);
  }
  if (!S_ISREG(st.st_mode)) {
    ::close(fd);
    return InvalidArgument(path + ": not a regular file");
  }
  return std::unique_ptr<ReadableFile>(std::make_unique<PosixReadableFile>(fd, static_cast<uint64_t>(st.st_size), path));
}

Status PosixFileSystem::Link(const std::string& from, const std::string& to) {
  if (::link(from.c_str(), to.c_str()) != 0) return ErrnoError(errno, "linking " + to);
  return OkStatus();
}

Status PosixFileSystem::RenameExclusive(const std::string& from, const std::string& to) {
#ifdef SYS_renameat2
  constexpr unsigned kNoReplace = 1;  // RENAME_NOREPLACE
  if (::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), kNoReplace) == 0) return OkStatus();
  if (errno != EINVAL && errno != ENOSYS) return ErrnoError(errno, "renaming " + from + " to " + to);
#endif
  // NFS has no RENAME_NOREPLACE. rename(2) of a directory is exclusive all the same: it replaces only an empty one.
  struct stat st {};
  if (::stat(from.c_str(), &st) != 0) return ErrnoError(errno, "stat of " + from);
  if (!S_ISDIR(st.st_mode)) return Internal("exclusive rename of a plain file is not supported here: " + from);
  if (::rename(from.c_str(), to.c_str()) != 0) return ErrnoError(errno, "renaming " + from + " to " + to);
  return OkStatus();
}

Status PosixFileSystem::Replace(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return ErrnoError(errno, "renaming " + from + " to " + to);
  return OkStatus();
}

Status PosixFileSystem::Unlink(const std::string& path) {
  if (::unlink(path.c_str()) != 0) return ErrnoError(errno, "removing " + path);
  return OkStatus();
}

Status PosixFileSystem::RemoveTree(const std::string& path) {
  std::error_code ec;
  std::filesystem::remove_all(path, ec);
  if (ec) return ErrnoError(ec.value(), "removing " + path);
  return OkStatus();
}

Status PosixFileSystem::SyncDir(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoError(errno, "opening directory " + path);
  const int rc = ::fsync(fd);
  const int err = errno;
  ::close(fd);
  if (rc != 0) return ErrnoError(err, "fsync of directory " + path);
  return OkStatus();
}

Status PosixFileSystem::MakeDirs(const std::string& path) {
  std::error_code ec;
  std::filesystem::create_directories(path, ec);
  if (ec) return ErrnoError(ec.value(), "making directory " + path);
  return OkStatus();
}

Result<std::vector<std::string>> PosixFileSystem::List(const std::string& path) {
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return ErrnoError(errno, "listing " + path);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* e = ::readdir(dir)) {
    const std::string name = e->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  const int err = errno;
  ::closedir(dir);
  if (err != 0) return ErrnoError(err, "listing " + path);
  std::sort(names.begin(), names.end());
  return names;
}

Result<FileInfo> PosixFileSystem::Stat(const std::string& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return ErrnoError(errno, "stat of " + path);
  FileInfo info;
  info.size = static_cast<uint64_t>(st.st_size);
  info.mtime_ns = static_cast<uint64_t>(st.st_mtim.tv_sec) * 1000000000ull + static_cast<uint64_t>(st.st_mtim.tv_nsec);
  info.inode = st.st_ino;
  info.device = st.st_dev;
  info.nlink = static_cast<uint32_t>(st.st_nlink);
  info.is_directory = S_ISDIR(st.st_mode);
  return info;
}

Result<SpaceInfo> PosixFileSystem::Space(const std::string& path) {
  struct statvfs st {};
  if (::statvfs(path.c_str(), &st) != 0) return ErrnoError(errno, "statvfs of " + path);
  return SpaceInfo{static_cast<uint64_t>(st.f_bavail) * st.f_frsize, static_cast<uint64_t>(st.f_blocks) * st.f_frsize};
}

std::string JoinPath(const std::string& a, const std::string& b) {
  if (a.empty()) return b;
  return a.back() == '/' ? a + b : a + "/" + b;
}

static std::string StripSlashes(std::string p) {
  while (p.size() > 1 && p.back() == '/') p.pop_back();
  return p;
}

std::string DirName(const std::string& path) {
  const std::string p = StripSlashes(path);
  const size_t slash = p.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : StripSlashes(p.substr(0, slash));
}

std::string BaseName(const std::string& path) {
  const std::string p = StripSlashes(path);
  const size_t slash = p.rfind('/');
  return slash == std::string::npos ? p : p.substr(slash + 1);
}

}  // namespace holdfast
