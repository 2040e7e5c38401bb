// SPDX-License-Identifier: Apache-2.0
//
// Packs: round trips, content addressing, and that no flipped byte of a pack file goes unnoticed.
#include "ledger/pack/pack.h"

#include <cerrno>
#include <cstdio>
#include <thread>

#include "ledger/base/forwarding_file_system.h"
#include "ledger/base/sim_file_system.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

struct Fixture {
  SimFileSystem fs;
  RunLayout layout{"/run"};
  Nonce self = NonceOf(1);
};

StoredTensor TensorOf(DType dtype, uint64_t count) {
  StoredTensor t;
  t.name = DTypeName(dtype);
  t.dtype = dtype;
  t.shape = {count};
  return t;
}

// Everything about one pack that a record would keep.
struct Packed {
  std::vector<PackManifest> packs;
  std::vector<StoredTensor> tensors;
  std::vector<Bytes> raw;
};

Packed PackSome(FileSystem& fs, const RunLayout& layout, const std::vector<std::pair<Codec, Bytes>>& all) {
  PackWriter writer(fs, layout, NonceOf(1), "test");
  Packed p;
  for (const auto& [codec, raw] : all) {
    StoredTensor t = TensorOf(DType::kU8, raw.size());
    HOLDFAST_EXPECT_OK(writer.AddTensor(codec, raw, &t));
    p.tensors.push_back(t);
    p.raw.push_back(raw);
  }
  auto packs = writer.Finish();
  HOLDFAST_EXPECT_OK(packs);
  p.packs = *packs;
  return p;
}

TEST(Pack, RoundTripsSeveralTypesAndSizes) {
  Fixture f;
  const Packed p = PackSome(f.fs, f.layout, {{Codec::kBf16Planes, Bf16Weights(3000000, 1)}, {Codec::kStored, RandomBytes(5000000, 2)},
                                             {Codec::kZstd, Bytes(100000, 3)}, {Codec::kF32Planes, F32Values(10, 4)}, {Codec::kStored, Bytes(1, 9)},
                                             {Codec::kStored, {}}});
  ASSERT_EQ(p.packs.size(), 1u);
  HOLDFAST_EXPECT_OK(VerifyPack(f.fs, f.layout, p.packs[0]));
  const auto info = f.fs.Stat(f.layout.Pack(p.packs[0].root));
  HOLDFAST_ASSERT_OK(info);
  EXPECT_EQ(info->size, p.packs[0].file_size);
  const PackReader reader(f.fs, f.layout, p.packs);
  for (size_t i = 0; i < p.tensors.size(); ++i) {
    Bytes back(p.raw[i].size());
    HOLDFAST_EXPECT_OK(reader.ReadTensor(p.tensors[i], back));
    EXPECT_EQ(back, p.raw[i]);
    EXPECT_EQ(p.tensors[i].digest, Sha256(p.raw[i]));
  }
}

TEST(Pack, EqualContentIsOnePackAndOneName) {
  Fixture f;
  const std::vector<std::pair<Codec, Bytes>> content = {{Codec::kBf16Planes, Bf16Weights(100000, 1)}};
  const Packed a = PackSome(f.fs, f.layout, content), b = PackSome(f.fs, f.layout, content);
  EXPECT_EQ(a.packs[0].root, b.packs[0].root);
  EXPECT_EQ(f.fs.List(DirName(f.layout.Pack(a.packs[0].root)))->size(), 1u);
  EXPECT_TRUE(f.fs.List(f.layout.TmpDir(f.self))->empty());
}

TEST(Pack, FillsSeveralPacks) {
  Fixture f;
  const Packed p = PackSome(f.fs, f.layout, {{Codec::kStored, RandomBytes(70u << 20, 1)}, {Codec::kStored, RandomBytes(70u << 20, 2)}});
  ASSERT_EQ(p.packs.size(), 3u);
  const PackReader reader(f.fs, f.layout, p.packs);
  for (size_t i = 0; i < p.tensors.size(); ++i) {
    Bytes back(p.raw[i].size());
    HOLDFAST_ASSERT_OK(reader.ReadTensor(p.tensors[i], back));
    EXPECT_EQ(back, p.raw[i]);
  }
  // 64 MiB of full chunks cost a fraction of a per cent.
  uint64_t values = 0;
  for (const ChunkRef& c : p.packs[0].chunks) values += c.stored_len;
  EXPECT_LT(p.packs[0].file_size - values, values / 1000);
  for (const PackManifest& m : p.packs) HOLDFAST_EXPECT_OK(VerifyPack(f.fs, f.layout, m));
}

// All bytes around the chunks, and a sample of the rest.
TEST(Pack, VerifyFindsEveryFlip) {
  Fixture f;
  const Packed p = PackSome(f.fs, f.layout, {{Codec::kStored, RandomBytes(30000, 1)}, {Codec::kBf16Planes, Bf16Weights(20000, 2)}, {Codec::kZstd, Bytes(50, 3)}});
  const PackManifest& m = p.packs[0];
  const std::string path = f.layout.Pack(m.root);
  const auto in_chunk = [&](uint64_t at) {
    for (const ChunkRef& c : m.chunks) {
      if (at >= c.offset && at < c.offset + c.stored_len) return true;
    }
    return false;
  };
  std::mt19937_64 random(1);
  uint64_t skeleton = 0, sampled = 0;
  for (uint64_t at = 0; at < m.file_size; ++at) {
    if (in_chunk(at) && random() % (m.file_size / 3000 + 1) != 0) continue;
    in_chunk(at) ? ++sampled : ++skeleton;
    const uint8_t mask = static_cast<uint8_t>(1u << random() % 8);
    f.fs.Corrupt(path, at, mask);
    ASSERT_EQ(VerifyPack(f.fs, f.layout, m).code(), ErrorCode::kCorrupt) << at;
    f.fs.Corrupt(path, at, mask);
  }
  EXPECT_GT(skeleton, 2000u);
  EXPECT_GT(sampled, 2000u);
  HOLDFAST_EXPECT_OK(VerifyPack(f.fs, f.layout, m));
}

TEST(Pack, ReadChunkRefusesAFlippedChunkAndNamesIt) {
  Fixture f;
  const Packed p = PackSome(f.fs, f.layout, {{Codec::kStored, RandomBytes(5000, 1)}, {Codec::kBf16Planes, Bf16Weights(5000, 2)}});
  const PackReader reader(f.fs, f.layout, p.packs);
  for (uint32_t chunk = 0; chunk < 2; ++chunk) {
    const ChunkRef& ref = p.packs[0].chunks[chunk];
    Bytes out(ref.raw_len);
    for (uint64_t i = 0; i < ref.stored_len; i += 37) {
      f.fs.Corrupt(f.layout.Pack(p.packs[0].root), ref.offset + i, 0x10);
      const Status s = reader.ReadChunk(0, chunk, out);
      ASSERT_EQ(s.code(), ErrorCode::kCorrupt);
      EXPECT_NE(s.error().message.find(p.packs[0].root.Hex()), std::string::npos);
      EXPECT_NE(s.error().message.find("chunk " + std::to_string(chunk)), std::string::npos);
      f.fs.Corrupt(f.layout.Pack(p.packs[0].root), ref.offset + i, 0x10);
    }
    HOLDFAST_EXPECT_OK(reader.ReadChunk(0, chunk, out));
    Bytes small(out.size() - 1);
    EXPECT_EQ(reader.ReadChunk(0, chunk, small).code(), ErrorCode::kInvalidArgument);
  }
  Bytes out(1);
  EXPECT_EQ(reader.ReadChunk(0, 2, out).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(reader.ReadChunk(1, 0, out).code(), ErrorCode::kInvalidArgument);
}

TEST(Pack, NoSpaceThenGoesOn) {
  Fixture f;
  for (const bool late : {false, true}) {
    f.fs.SetLateWriteErrors(late);
    PackWriter writer(f.fs, f.layout, f.self, "test");
    const Bytes raw = RandomBytes(200000, late);
    StoredTensor t = TensorOf(DType::kU8, raw.size());
    HOLDFAST_ASSERT_OK(writer.AddTensor(Codec::kStored, raw, &t));
    f.fs.SetFreeBytes(1000);
    EXPECT_EQ(writer.Finish().code(), ErrorCode::kResourceExhausted);
    f.fs.SetFreeBytes(1u << 30);
    const auto packs = writer.Finish();
    HOLDFAST_ASSERT_OK(packs);
    ASSERT_EQ(packs->size(), 1u);
    HOLDFAST_EXPECT_OK(VerifyPack(f.fs, f.layout, (*packs)[0]));
  }
}

TEST(Pack, LostLinkReplyIsNoFailure) {
  Fixture f;
  f.fs.LoseLinkReply(1, EIO);
  const Packed p = PackSome(f.fs, f.layout, {{Codec::kStored, Bytes(100, 1)}});
  HOLDFAST_EXPECT_OK(VerifyPack(f.fs, f.layout, p.packs.at(0)));
}

// What a server that exports `async` left of a pack when it lost power: the name, and an empty or half a file.
TEST(Pack, ADamagedFileUnderItsNameIsReplaced) {
  const std::vector<std::pair<Codec, Bytes>> content = {{Codec::kStored, RandomBytes(3'000'000, 1)}};
  for (const std::string damage : {"empty", "short", "flipped", "longer"}) {
    Fixture f;
    const Packed p = PackSome(f.fs, f.layout, content);
    const std::string path = f.layout.Pack(p.packs[0].root);
    Bytes bytes = *f.fs.ReadFile(path);
    if (damage == "empty") bytes.clear();
    if (damage == "short") bytes.resize(bytes.size() / 2);
    if (damage == "flipped") bytes[bytes.size() - 100] ^= 4;
    if (damage == "longer") bytes.push_back(0);
    HOLDFAST_ASSERT_OK(f.fs.Unlink(path));
    {
      const auto file = f.fs.Create(path, 0444);
      HOLDFAST_ASSERT_OK(file);
      HOLDFAST_ASSERT_OK((*file)->Append(bytes));
      HOLDFAST_ASSERT_OK((*file)->Close());
    }
    ASSERT_EQ(VerifyPack(f.fs, f.layout, p.packs[0]).code(), ErrorCode::kCorrupt) << damage;
    const Packed again = PackSome(f.fs, f.layout, content);
    EXPECT_EQ(again.packs[0].root, p.packs[0].root) << damage;
    HOLDFAST_EXPECT_OK(VerifyPack(f.fs, f.layout, p.packs[0]));
    EXPECT_TRUE(f.fs.List(f.layout.TmpDir(f.self))->empty()) << damage;
    HOLDFAST_ASSERT_OK(f.fs.SyncDir("/"));
    f.fs.Crash();
    HOLDFAST_EXPECT_OK(VerifyPack(f.fs, f.layout, p.packs[0]));
  }
}

// Found by holdfast-sim, seed 11552: the name was taken and could not be opened, so every node refused the stage for good.
TEST(Pack, AFileThatALookupHidesIsReplaced) {
  class Hiding : public ForwardingFileSystem {
   public:
    using ForwardingFileSystem::ForwardingFileSystem;
    std::string hidden;
    Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
      if (path == hidden) return NotFound(path + ": hidden");
      return fs_.Open(path);
    }
  };
  Fixture f;
  const std::vector<std::pair<Codec, Bytes>> content = {{Codec::kStored, RandomBytes(3000, 1)}};
  const Packed p = PackSome(f.fs, f.layout, content);
  Hiding fs(f.fs);
  fs.hidden = f.layout.Pack(p.packs[0].root);
  const Packed again = PackSome(fs, f.layout, content);
  ASSERT_EQ(again.packs.size(), 1u);
  EXPECT_EQ(again.packs[0].root, p.packs[0].root);
  HOLDFAST_EXPECT_OK(VerifyPack(f.fs, f.layout, p.packs[0]));
}

TEST(Pack, ASoundFileUnderItsNameIsLeftAlone) {
  Fixture f;
  const std::vector<std::pair<Codec, Bytes>> content = {{Codec::kStored, RandomBytes(3'000'000, 1)}};
  const Packed p = PackSome(f.fs, f.layout, content);
  const auto before = f.fs.Stat(f.layout.Pack(p.packs[0].root));
  PackSome(f.fs, f.layout, content);
  EXPECT_EQ(f.fs.Stat(f.layout.Pack(p.packs[0].root))->inode, before->inode);
}

TEST(Pack, ReadsFromManyThreads) {
  Fixture f;
  const Packed p = PackSome(f.fs, f.layout, {{Codec::kBf16Planes, Bf16Weights(1000000, 1)}, {Codec::kStored, RandomBytes(1000000, 2)}});
  const PackReader reader(f.fs, f.layout, p.packs);
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      Bytes back(p.raw[i % 2].size());
      if (reader.ReadTensor(p.tensors[i % 2], back).ok() && back == p.raw[i % 2]) ++good;
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(good, 8);
}

TEST(Pack, LmdbToolsOpenIt) {
  const TempDir dir;
  PosixFileSystem fs;
  const Packed p = PackSome(fs, RunLayout(dir.path()), {{Codec::kStored, RandomBytes(9000000, 1)}, {Codec::kZstd, Bytes(10, 1)}});
  HOLDFAST_EXPECT_OK(VerifyPack(fs, RunLayout(dir.path()), p.packs[0]));
  for (const char* tool : {"mdb_stat", "mdb_dump"}) {
    const std::string command = std::string(tool) + " -n " + RunLayout(dir.path()).Pack(p.packs[0].root) + " > " + dir.path() + "/out 2>&1";
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
  const Bytes out = *fs.ReadFile(dir.path() + "/out");  // three chunks of random data and a small one: keys 0..3
  EXPECT_NE(AsText(out).find("\n 00000003\n"), std::string_view::npos);
}

}  // namespace
}  // namespace holdfast
