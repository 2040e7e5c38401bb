// SPDX-License-Identifier: Apache-2.0
#include "jobctl/disk_probe.h"

#include <algorithm>
#include <cstring>

#include "ledger/base/checksum.h"
#include "ledger/base/ids.h"
#include "ledger/base/past_cache.h"

namespace holdfast {
namespace {

constexpr size_t kStep = 4u << 20;
constexpr uint64_t kHashedBytes = 64u << 20;

uint64_t PerSecond(uint64_t bytes, uint64_t ns) {
  return std::max<uint64_t>(1, static_cast<uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(std::max<uint64_t>(1, ns))));
}

// Bytes that no disk can make less of.
void FillUp(const AlignedBuffer& buffer) {
  uint64_t x = 0x2545f4914f6cdd1d;
  for (size_t i = 0; i < buffer.size(); i += sizeof x) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    std::memcpy(buffer.get() + i, &x, sizeof x);
  }
}

}  // namespace

Result<DiskProbe> ProbeDisk(FileSystem& fs, const Clock& clock, const std::string& dir) {
  const AlignedBuffer buffer(kStep);
  if (buffer.get() == nullptr) return Exhausted("no memory to measure " + dir + " with");
  FillUp(buffer);
  const ByteSpan data(buffer.get(), buffer.size());
  const std::string path = JoinPath(dir, ".holdfast-probe-" + Nonce::Random().Hex());
  HOLDFAST_ASSIGN(const auto out, fs.Create(path, 0600));
  const auto in = fs.Open(path);
  HOLDFAST_TRY(fs.Unlink(path));
  if (!in.ok()) return in.error();

  DiskProbe probe;
  (void)GoPastCache(*out);
  uint64_t bytes = 0, begin = clock.MonotonicNs();
  while (bytes < kDiskProbeBytesMax && clock.MonotonicNs() - begin < kDiskProbeNs) {
    HOLDFAST_TRY(out->Append(data));
    bytes += data.size();
  }
  HOLDFAST_TRY(out->Sync());
  probe.write_bytes_per_s = PerSecond(bytes, clock.MonotonicNs() - begin);
  out->DropCache();

  (void)GoPastCache(**in);
  begin = clock.MonotonicNs();
  uint64_t read = 0;
  for (; read < bytes && clock.MonotonicNs() - begin < kDiskProbeNs; read += data.size()) {
    HOLDFAST_TRY((*in)->Read(read, std::span(buffer.get(), buffer.size())));
  }
  probe.read_bytes_per_s = PerSecond(read, clock.MonotonicNs() - begin);

  begin = clock.MonotonicNs();
  for (uint64_t hashed = 0; hashed < kHashedBytes; hashed += data.size()) (void)Sha256(data);
  probe.hash_bytes_per_s = PerSecond(kHashedBytes, clock.MonotonicNs() - begin);
  return probe;
}

}  // namespace holdfast
