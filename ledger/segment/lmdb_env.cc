// SPDX-License-Identifier: Apache-2.0
//
// The only file that includes lmdb.h.
#include "ledger/segment/lmdb_env.h"

#include <lmdb.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

namespace holdfast {
namespace {

constexpr unsigned kAlways = MDB_NOSUBDIR | MDB_NOLOCK;
constexpr size_t kPageHeaderBytes = 16;

Error LmdbError(int rc, const std::string& doing) {
  const std::string what = "LMDB, " + doing + ": " + mdb_strerror(rc);
  if (rc == MDB_MAP_FULL || rc == MDB_TXN_FULL || rc == ENOMEM || rc == ENOSPC) return Exhausted(what);
  if (rc == MDB_KEYEXIST || rc == MDB_BAD_VALSIZE) return InvalidArgument(what);
  return Corrupt(what);
}

class MemFd {  // anonymous memory that also has a path
 public:
  static Result<MemFd> Create() {
    const int fd = memfd_create("holdfast", MFD_CLOEXEC);
    if (fd < 0) return ErrnoError(errno, "memfd_create");
    return MemFd(fd);
  }
  explicit MemFd(int fd) : fd_(fd) {}
  MemFd(MemFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  MemFd& operator=(MemFd&&) = delete;
  ~MemFd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

struct Env {  // closes environment and transaction
  MDB_env* env = nullptr;
  MDB_txn* txn = nullptr;
  MDB_dbi dbi = 0;
  Env() = default;
  Env(const Env&) = delete;
  Env& operator=(const Env&) = delete;
  ~Env() { Close(); }
  void Close() {
    if (txn != nullptr) mdb_txn_abort(std::exchange(txn, nullptr));
    if (env != nullptr) mdb_env_close(std::exchange(env, nullptr));
  }
  Status Open(const std::string& path, unsigned flags, uint64_t map_bytes) {
    if (const int rc = mdb_env_create(&env)) return LmdbError(rc, "creating an environment");
    if (map_bytes != 0) {
      if (const int rc = mdb_env_set_mapsize(env, map_bytes)) return LmdbError(rc, "setting the map size");
    }
    if (const int rc = mdb_env_open(env, path.c_str(), kAlways | flags, 0444)) return LmdbError(rc, "opening an environment");
    return Begin(flags & MDB_RDONLY);
  }
  Status Begin(unsigned flags) {
    if (const int rc = mdb_txn_begin(env, nullptr, flags, &txn)) return LmdbError(rc, "beginning a transaction");
    if (const int rc = mdb_dbi_open(txn, nullptr, 0, &dbi)) return LmdbError(rc, "opening the database");
    return OkStatus();
  }
};

// Calls `visit(key, value)` in key order.
template <class Visit>
Status Walk(const Env& env, Visit visit) {
  MDB_cursor* raw = nullptr;
  if (const int rc = mdb_cursor_open(env.txn, env.dbi, &raw)) return LmdbError(rc, "opening a cursor");
  const std::unique_ptr<MDB_cursor, void (*)(MDB_cursor*)> cursor(raw, mdb_cursor_close);
  MDB_val key, value;
  int rc;
  while ((rc = mdb_cursor_get(cursor.get(), &key, &value, MDB_NEXT)) == 0) {
    HOLDFAST_TRY(visit(ByteSpan(static_cast<const uint8_t*>(key.mv_data), key.mv_size),
                       ByteSpan(static_cast<const uint8_t*>(value.mv_data), value.mv_size)));
  }
  if (rc != MDB_NOTFOUND) return LmdbError(rc, "walking the database");
  return OkStatus();
}

uint64_t ReadLe64(const uint8_t* p) {
  uint64_t v = 0;
  Cursor(ByteSpan(p, 8)).Le(&v);
  return v;
}

}  // namespace

// ---- image ----

struct EnvImage::Impl {
  void* map = MAP_FAILED;
  size_t size = 0;
  std::vector<Place> places;
  ~Impl() {
    if (map != MAP_FAILED) ::munmap(map, size);
  }
};

EnvImage::EnvImage() : impl_(std::make_unique<Impl>()) {}
EnvImage::~EnvImage() = default;
EnvImage::EnvImage(EnvImage&&) noexcept = default;
EnvImage& EnvImage::operator=(EnvImage&&) noexcept = default;
ByteSpan EnvImage::bytes() const { return {static_cast<const uint8_t*>(impl_->map), impl_->size}; }
const std::vector<EnvImage::Place>& EnvImage::values() const { return impl_->places; }

// ---- builder ----

struct EnvBuilder::Impl {
  explicit Impl(MemFd f) : fd(std::move(f)) {}
  MemFd fd;
  Env env;  // dies before fd
};

EnvBuilder::EnvBuilder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EnvBuilder::~EnvBuilder() = default;
EnvBuilder::EnvBuilder(EnvBuilder&&) noexcept = default;
EnvBuilder& EnvBuilder::operator=(EnvBuilder&&) noexcept = default;

Result<EnvBuilder> EnvBuilder::Create(uint64_t map_bytes) {
  HOLDFAST_ASSIGN(MemFd fd, MemFd::Create());
  auto impl = std::make_unique<Impl>(std::move(fd));
  HOLDFAST_TRY(impl->env.Open(impl->fd.path(), MDB_NOSYNC, map_bytes));
  return EnvBuilder(std::move(impl));
}

Status EnvBuilder::Append(ByteSpan key, ByteSpan value) {
  MDB_val k{key.size(), const_cast<uint8_t*>(key.data())};
  MDB_val v{value.size(), const_cast<uint8_t*>(value.data())};
  if (const int rc = mdb_put(impl_->env.txn, impl_->env.dbi, &k, &v, MDB_APPEND)) {
    return LmdbError(rc, "adding a value of " + std::to_string(value.size()) + " bytes");
  }
  return OkStatus();
}

// LMDB hands out pointers into its map. The page that a value begins in starts with its own number (an overflow value begins
// right behind the header of its first page, a small one inside a leaf), so number and distance give the place in the file.
static Result<std::vector<EnvImage::Place>> FindPlaces(const Env& env, size_t page_bytes, ByteSpan image) {
  std::vector<EnvImage::Place> places;
  HOLDFAST_TRY(Walk(env, [&](ByteSpan, ByteSpan value) -> Status {
    if (value.empty()) {  // it may point behind the end of its page
      places.push_back({0, 0});
      return OkStatus();
    }
    const size_t inside = reinterpret_cast<uintptr_t>(value.data()) % page_bytes;
    HOLDFAST_CHECK(inside >= kPageHeaderBytes);
    const uint64_t offset = ReadLe64(value.data() - inside) * page_bytes + inside;
    HOLDFAST_CHECK(offset <= image.size() && value.size() <= image.size() - offset);
    HOLDFAST_CHECK(std::equal(value.begin(), value.end(), image.begin() + static_cast<ptrdiff_t>(offset)));
    places.push_back({offset, value.size()});
    return OkStatus();
  }));
  return places;
}

Result<EnvImage> EnvBuilder::Seal(bool want_places) && {
  const std::unique_ptr<Impl> impl = std::move(impl_);
  Env& env = impl->env;
  if (const int rc = mdb_txn_commit(std::exchange(env.txn, nullptr))) return LmdbError(rc, "committing in memory");
  MDB_envinfo info;
  MDB_stat stat;
  mdb_env_info(env.env, &info);
  mdb_env_stat(env.env, &stat);
  EnvImage image;
  const size_t size = (info.me_last_pgno + 1) * stat.ms_psize;
  if (::ftruncate(impl->fd.get(), static_cast<off_t>(size)) != 0) return ErrnoError(errno, "sizing a segment in memory");
  image.impl_->map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, impl->fd.get(), 0);
  if (image.impl_->map == MAP_FAILED) return ErrnoError(errno, "mapping a segment in memory");
  image.impl_->size = size;
  if (want_places) {
    HOLDFAST_TRY(env.Begin(MDB_RDONLY));
    HOLDFAST_ASSIGN(image.impl_->places, FindPlaces(env, stat.ms_psize, image.bytes()));
  }
  return image;
}

uint64_t EnvMapBytes(uint64_t bytes, uint64_t count) {
  constexpr uint64_t kPerEntry = 64u << 10;  // at least two pages of the largest size
  return std::bit_ceil(2 * bytes + kPerEntry * count + (1u << 20));
}

// ---- reader ----

// The two meta pages must be what LMDB expects, and the newer one must end where the file ends: LMDB itself would map less, or
// read behind the end and die. Layout of struct MDB_meta in mdb.c, data version 1.
static Status CheckMetas(ByteSpan env) {
  constexpr size_t kMetaBytes = 152;
  constexpr uint32_t kMagic = 0xbeefc0de, kVersion = 1;
  uint32_t page_bytes = 0;
  uint64_t last_page = 0, newest = 0;
  for (int i = 0; i < 2; ++i) {
    const size_t at = i * size_t{page_bytes};
    if (env.size() < at + kMetaBytes) return Corrupt("environment of " + std::to_string(env.size()) + " bytes, too short for its meta pages");
    Cursor in(env.subspan(at + kPageHeaderBytes));
    uint32_t magic = 0, version = 0, psize = 0;
    uint64_t skip = 0, last = 0, txn = 0;
    in.Le(&magic), in.Le(&version), in.Le(&skip), in.Le(&skip), in.Le(&psize);
    in = Cursor(env.subspan(at + 136));
    in.Le(&last), in.Le(&txn);
    if (magic != kMagic || version != kVersion) return Corrupt("meta page " + std::to_string(i) + " is not LMDB's, data version 1");
    if (psize < 512 || psize > 32768 || !std::has_single_bit(psize) || (i == 1 && psize != page_bytes)) return Corrupt("impossible page size in meta page " + std::to_string(i));
    page_bytes = psize;
    if (i == 0 || txn > newest) newest = txn, last_page = last;
  }
  if (env.size() % page_bytes != 0 || last_page != env.size() / page_bytes - 1) return Corrupt("environment does not end with its last page");
  return OkStatus();
}

static Status WriteAll(int fd, ByteSpan data) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(errno, "copying a segment into memory");
    data = data.subspan(static_cast<size_t>(n));
  }
  return OkStatus();
}

Status ReadEnv(ByteSpan bytes, const std::function<Status(ByteSpan key, ByteSpan value)>& on_entry) {
  HOLDFAST_TRY(CheckMetas(bytes));
  HOLDFAST_ASSIGN(const MemFd fd, MemFd::Create());
  HOLDFAST_TRY(WriteAll(fd.get(), bytes));
  Env env;
  HOLDFAST_TRY(env.Open(fd.path(), MDB_RDONLY | MDB_NOTLS, 0));
  return Walk(env, on_entry);
}

}  // namespace holdfast
