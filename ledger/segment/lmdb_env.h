// SPDX-License-Identifier: Apache-2.0
//
// LMDB environments in anonymous memory. The only place that knows lmdb.h (in the .cc). No environment here ever has a path:
// it is built in a memfd, sealed into an image of exactly its used pages, and read back from a private copy.
// Flags: NOSUBDIR | NOLOCK always; NOSYNC while building (nothing is promised before our own fsync); RDONLY for reading;
// never WRITEMAP, NOMEMINIT or a second transaction, so that equal input gives equal bytes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ledger/base/coding.h"
#include "ledger/base/result.h"

namespace holdfast {

// The bytes of a sealed environment, mapped read-only. Move-only.
class EnvImage {
 public:
  EnvImage();
  ~EnvImage();
  EnvImage(EnvImage&&) noexcept;
  EnvImage& operator=(EnvImage&&) noexcept;
  ByteSpan bytes() const;

  struct Place { uint64_t offset = 0, length = 0; };  // of a value in bytes()
  const std::vector<Place>& values() const;           // in key order; only if asked for at Seal

 private:
  friend class EnvBuilder;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Writes one environment in one transaction, keys ascending (MDB_APPEND), one unnamed database.
class EnvBuilder {
 public:
  // `map_bytes` ends up in the meta pages: fixed by a rule of the caller, never by chance. See EnvMapBytes.
  static Result<EnvBuilder> Create(uint64_t map_bytes);
  ~EnvBuilder();
  EnvBuilder(EnvBuilder&&) noexcept;
  EnvBuilder& operator=(EnvBuilder&&) noexcept;

  // kInvalidArgument: the key does not ascend. kResourceExhausted: the map is full or memory is short.
  Status Append(ByteSpan key, ByteSpan value);
  // Commits and closes. `want_places`: also find out where each value lies (by LMDB's own pointers, then compared byte for byte).
  Result<EnvImage> Seal(bool want_places) &&;

 private:
  struct Impl;
  explicit EnvBuilder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Map size for values and keys of `bytes` in `count` entries: a power of two with room to spare, at least 1 MiB.
uint64_t EnvMapBytes(uint64_t bytes, uint64_t count);

// Calls `on_entry` for every entry in key order, from a private copy of `env`. kCorrupt: meta pages out of bounds, LMDB errors.
// LMDB has no checksums and can crash on damaged pages: verify a digest of `env` first.
Status ReadEnv(ByteSpan env, const std::function<Status(ByteSpan key, ByteSpan value)>& on_entry);

}  // namespace holdfast
