// SPDX-License-Identifier: Apache-2.0
//
// What this machine allows one job, whatever the program: reading the source, writing files, the matmuls of the model's linears, copies on
// and to a GPU, SHA-256, memcpy. Prints one JSON object of rates a second. Each is the median of three that take --seconds at most (those
// that neither read nor write: a third of that); nothing is measured on zeros.
//
//   bench_limits --source MODEL_DIR --dir DIR [--device cpu] [--seq-len 512] [--threads N] [--write-gb 8] [--seconds 2] [--cold]
//
// Files are read by N threads, 16 MiB at a time, each into one buffer; a repetition goes on where the one before stopped. As the page cache
// stands, and with --cold also after the kernel was asked to drop the files from it. Writes go to four files at a time in DIR, fsync included,
// past the page cache and through it; the faster counts. On a CPU the matmuls run on N threads at once, in CPU time of the threads.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>

#include "calib/model/decoder.h"
#include "calib/runner/runner.h"
#include "ledger/base/past_cache.h"
#include "ledger/base/sha256_pair.h"
#include "tests/bench/torch_matmul.h"

namespace holdfast {
namespace {

constexpr uint64_t kReadStep = 16u << 20, kWriteStep = 4u << 20, kShaStep = 4u << 20, kCopyStep = 256u << 20;
constexpr uint32_t kWriters = 4;

struct Flags {
  std::string source, dir, device = "cpu";
  uint32_t seq_len = 512, threads = std::max(1u, std::thread::hardware_concurrency());
  double write_gb = 8, seconds = 2;
  bool cold = false;
};

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "bench_limits: %s\n", message.c_str());
  std::exit(1);
}
template <class T>
T Must(Result<T> r) {
  if (!r.ok()) Fail(r.error().message);
  return std::move(r).value();
}
void MustSystem(bool good, const std::string& what) {
  if (!good) Fail(what + ": " + std::strerror(errno));
}

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double MedianOfThree(const std::function<double()>& rate) {
  double r[3] = {rate(), rate(), rate()};
  std::sort(r, r + 3);
  return r[1];
}

void OnThreads(uint32_t threads, const std::function<void(uint32_t)>& work) {
  std::vector<std::jthread> pool;
  for (uint32_t t = 0; t < threads; ++t) pool.emplace_back(work, t);
}

// Repeats `work`, which returns how many bytes it took, on each of the threads until the time is over: bytes a second of all of them.
double BytesPerSecond(uint32_t threads, double seconds, const std::function<uint64_t(uint32_t)>& work) {
  std::atomic<uint64_t> bytes = 0;
  const double begin = Now();
  OnThreads(threads, [&](uint32_t t) {
    do bytes += work(t);
    while (Now() - begin < seconds);
  });
  return static_cast<double>(bytes) / (Now() - begin);
}

void FillRandom(std::span<uint8_t> out, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t i = 0; i + 8 <= out.size(); i += 8) {
    const uint64_t v = random();
    std::memcpy(out.data() + i, &v, 8);
  }
}
AlignedBuffer RandomBuffer(size_t size, uint64_t seed) {
  AlignedBuffer b(size);
  if (b.get() == nullptr) Fail("no memory for a buffer of " + std::to_string(size) + " bytes");
  FillRandom({b.get(), size}, seed);
  return b;
}

// The source's files as pieces that any thread takes next.
class Reader {
 public:
  Reader(const SourceModel& source, uint32_t threads) : threads_(threads) {
    for (const auto& f : source.files()) {
      fds_.push_back(open(f->path().c_str(), O_RDONLY));
      MustSystem(fds_.back() >= 0, f->path());
      for (uint64_t at = 0; at < f->size(); at += kReadStep) pieces_.push_back({fds_.back(), at, std::min(kReadStep, f->size() - at)});
    }
    for (uint32_t t = 0; t < threads; ++t) buffers_.push_back(RandomBuffer(kReadStep, t));
  }
  ~Reader() {
    for (const int fd : fds_) close(fd);
  }
  void Forget() const {
    for (const int fd : fds_) MustSystem(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "posix_fadvise");
  }
  // At most one pass over all files: a piece that was read twice would have been in the page cache.
  double Rate(double seconds) {
    std::atomic<uint64_t> bytes = 0, taken = 0;
    const double begin = Now();
    OnThreads(threads_, [&](uint32_t t) {
      while (Now() - begin < seconds && taken++ < pieces_.size()) bytes += ReadPiece(pieces_[next_++ % pieces_.size()], buffers_[t].get());
    });
    return static_cast<double>(bytes) / (Now() - begin);
  }

 private:
  struct Piece {
    int fd;
    uint64_t offset, length;
  };
  static uint64_t ReadPiece(const Piece& p, uint8_t* to) {
    for (uint64_t done = 0; done < p.length;) {
      const ssize_t n = pread(p.fd, to + done, p.length - done, static_cast<off_t>(p.offset + done));
      MustSystem(n > 0, "pread");
      done += static_cast<uint64_t>(n);
    }
    return p.length;
  }

  uint32_t threads_;
  std::vector<int> fds_;
  std::vector<Piece> pieces_;
  std::vector<AlignedBuffer> buffers_;
  std::atomic<uint64_t> next_ = 0;
};

// Bytes a second into four new files at a time, the fsync of each included; 0 where the directory cannot be written so.
double WriteRate(const Flags& flags, int open_flags) {
  std::vector<int> fds;
  std::vector<AlignedBuffer> buffers;
  for (uint32_t w = 0; w < kWriters; ++w) {
    const std::string path = flags.dir + "/bench_limits." + std::to_string(getpid()) + "." + std::to_string(w);
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | open_flags, 0600);
    if (fd < 0 && errno == EINVAL) return 0;
    MustSystem(fd >= 0, path);
    unlink(path.c_str());
    fds.push_back(fd);
    buffers.push_back(RandomBuffer(kWriteStep, w));
  }
  const auto most = static_cast<uint64_t>(flags.write_gb * 1e9);
  std::atomic<uint64_t> bytes = 0;
  const double begin = Now();
  OnThreads(kWriters, [&](uint32_t w) {
    for (uint64_t stamp = 1; bytes < most && Now() - begin < flags.seconds; ++stamp) {
      std::memcpy(buffers[w].get(), &stamp, sizeof stamp);   // no two pieces alike
      MustSystem(write(fds[w], buffers[w].get(), kWriteStep) == static_cast<ssize_t>(kWriteStep), flags.dir);
      bytes += kWriteStep;
    }
    MustSystem(fsync(fds[w]) == 0, "fsync");
  });
  const double rate = static_cast<double>(bytes) / (Now() - begin);
  for (const int fd : fds) close(fd);
  return rate;
}

// Linears that read the same tensor, as one product: so the forward pass has them.
struct Product {
  int64_t k = 0, n = 0;
};
std::vector<Product> Products(const DecoderSpec& s) {
  std::vector<Product> out(4);
  for (const LinearSpec& l : LayerLinears(s)) {
    Product& p = out[static_cast<size_t>(l.input)];
    p.k = static_cast<int64_t>(l.cols);
    p.n += static_cast<int64_t>(l.rows);
  }
  return out;
}
double LayerFlopsPerToken(const DecoderSpec& s) {
  double flops = 0;
  for (const Product& p : Products(s)) flops += 2.0 * static_cast<double>(p.k) * static_cast<double>(p.n);
  return flops;
}

// Repeats a measurement that takes a number of repetitions so often that it takes about `seconds`.
double Bounded(double seconds, const std::function<double(int)>& time_of_one) {
  const double once = time_of_one(1);
  return time_of_one(std::clamp(static_cast<int>(seconds / std::max(once, 1e-7)), 1, 2000));
}

double MatmulFlopsPerSecond(const DecoderSpec& s, const Flags& flags, double seconds) {
  const auto tokens = static_cast<int64_t>(flags.seq_len);
  const double flops = LayerFlopsPerToken(s) * flags.seq_len;
  const auto layer_seconds = [&] {
    double sum = 0;
    for (const Product& p : Products(s)) {
      sum += Bounded(seconds / 4, [&](int repeats) {
        return flags.device == "cpu" ? TimeTorchMatmul(tokens, p.k, p.n, repeats) : TimeTorchMatmulOn(flags.device, tokens, p.k, p.n, repeats);
      });
    }
    return sum;
  };
  if (flags.device != "cpu") return flops / layer_seconds();
  std::vector<double> each(flags.threads);
  OnThreads(flags.threads, [&](uint32_t t) { each[t] = flops / layer_seconds(); });
  double rate = 0;
  for (const double r : each) rate += r;
  return rate;
}

uint64_t HashPiece(const AlignedBuffer& b) {
  b.get()[0] ^= Sha256({b.get(), b.size()}).bytes[0];
  return b.size();
}

void AddCores(const Flags& flags, double seconds, Json* out) {
  std::vector<AlignedBuffer> buffers, from, to;
  for (uint32_t t = 0; t < flags.threads; ++t) buffers.push_back(RandomBuffer(kShaStep, t));
  const AlignedBuffer beside = RandomBuffer(kShaStep, 77);
  Sha256PairHasher pair;
  const uint64_t copy = kCopyStep / flags.threads / kPastCacheAlign * kPastCacheAlign;   // larger than caches, all threads together
  for (uint32_t t = 0; t < flags.threads; ++t) from.push_back(RandomBuffer(copy, t)), to.push_back(RandomBuffer(copy, t + 1));
  const auto all = [&](uint32_t threads, const std::function<uint64_t(uint32_t)>& work) {
    return MedianOfThree([&] { return BytesPerSecond(threads, seconds, work); });
  };
  (*out)["sha256_core_bytes_per_s"] = all(1, [&](uint32_t t) { return HashPiece(buffers[t]); });
  (*out)["sha256_pair_core_bytes_per_s"] = all(1, [&](uint32_t t) {
    beside.get()[0] ^= pair.UpdateBeside({buffers[t].get(), kShaStep}, {beside.get(), kShaStep}).bytes[0];
    return 2 * kShaStep;
  });
  (*out)["sha256_bytes_per_s"] = all(flags.threads, [&](uint32_t t) { return HashPiece(buffers[t]); });
  const auto copy_piece = [&](uint32_t t) {
    std::memcpy(to[t].get(), from[t].get(), copy);
    return copy;
  };
  (*out)["memcpy_core_bytes_per_s"] = all(1, copy_piece);
  (*out)["memcpy_bytes_per_s"] = all(flags.threads, copy_piece);
}

void AddDevice(const Flags& flags, double seconds, Json* out) {
  const auto median = [&](double (*time)(const std::string&, int64_t, int), int64_t bytes) {
    return MedianOfThree([&] {
      return static_cast<double>(bytes) / Bounded(seconds, [&](int repeats) { return time(flags.device, bytes, repeats); });
    });
  };
  (*out)["copy_device_bytes_per_s"] = 2 * median(TimeDeviceCopy, 1 << 30);   // read and written
  (*out)["h2d_bytes_per_s"] = median(TimeHostToDevice, 1 << 28);
}

int Run(const Flags& flags) {
  PosixFileSystem fs;
  const Bytes text = Must(fs.ReadFile(flags.source + "/config.json"));
  const DecoderSpec spec = Must(ParseDecoder(Must(ParseJson(AsText(text), "config.json")), "config.json"));
  const auto source = Must(SourceModel::Open(fs, flags.source));
  if (MeasureSpeed(flags.device) == 0) Fail("libtorch has no device " + flags.device + " here; try --device cpu");
  const double brief = flags.seconds / 3;
  Json out = {{"threads", flags.threads}, {"device", flags.device}, {"numerics", NumericsClass(flags.device)}, {"seq_len", flags.seq_len},
              {"source_bytes", source->total_bytes()}, {"linear_flops_per_token", LayerFlopsPerToken(spec) * spec.layers}};
  {
    Reader reader(*source, flags.threads);
    out["read_bytes_per_s"] = MedianOfThree([&] { return reader.Rate(flags.seconds); });
    if (flags.cold) out["read_cold_bytes_per_s"] = MedianOfThree([&] { return reader.Forget(), reader.Rate(flags.seconds); });
  }
  const double direct = MedianOfThree([&] { return WriteRate(flags, O_DIRECT); });
  const double buffered = MedianOfThree([&] { return WriteRate(flags, 0); });
  out["write_direct_bytes_per_s"] = direct;
  out["write_buffered_bytes_per_s"] = buffered;
  out["write_bytes_per_s"] = std::max(direct, buffered);
  out["write_how"] = direct > buffered ? "O_DIRECT and fsync" : "buffered and fsync";
  out["matmul_flops_per_s"] = MedianOfThree([&] { return MatmulFlopsPerSecond(spec, flags, brief); });
  if (flags.device != "cpu") AddDevice(flags, brief, &out);
  AddCores(flags, brief, &out);
  std::printf("%s\n", out.dump(1).c_str());
  return 0;
}

const char* const kUsage =
    "bench_limits --source MODEL_DIR --dir DIR [options]: what this machine allows one job, as JSON of rates a second\n"
    "  --source DIR     model whose files are read and whose linears are multiplied\n"
    "  --dir DIR        where files are written (four at a time, removed at once)\n"
    "  --device D       cpu (default), cuda, cuda:N\n"
    "  --seq-len N      tokens of one product (default 512)\n"
    "  --threads N      default: all cores\n"
    "  --write-gb GB    written at most, each time (default 8)\n"
    "  --seconds S      one measurement at most (default 2; a third of it without files)\n"
    "  --cold           also read after the files were dropped from the page cache\n";

int Usage(int status) {
  std::fputs(kUsage, status == 0 ? stdout : stderr);
  return status;
}

int Main(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--help") return Usage(0);
    if (flag == "--cold") {
      flags.cold = true;
      continue;
    }
    if (i + 1 == argc) return Usage(2);
    const char* const value = argv[++i];
    if (flag == "--source") flags.source = value;
    else if (flag == "--dir") flags.dir = value;
    else if (flag == "--device") flags.device = value;
    else if (flag == "--seq-len") flags.seq_len = static_cast<uint32_t>(std::atoi(value));
    else if (flag == "--threads") flags.threads = static_cast<uint32_t>(std::atoi(value));
    else if (flag == "--write-gb") flags.write_gb = std::atof(value);
    else if (flag == "--seconds") flags.seconds = std::atof(value);
    else return Usage(2);
  }
  if (flags.source.empty() || flags.dir.empty() || flags.seq_len == 0 || flags.threads == 0) return Usage(2);
  return Run(flags);
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) { return holdfast::Main(argc, argv); }
