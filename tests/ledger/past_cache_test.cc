// SPDX-License-Identifier: Apache-2.0
//
// Past the page cache or through it, the bytes are the same. Runs on whatever file system TempDir lies on; where that has no such way, both
// sides take the other.
#include "ledger/base/past_cache.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <thread>
#include <vector>

#include "ledger/base/sim_file_system.h"

namespace holdfast {
namespace {

constexpr size_t kPage = kPastCacheAlign;

struct PastCacheTest : testing::Test {
  PosixFileSystem fs;
  std::string path = JoinPath(testing::TempDir(), "past-cache-" + std::to_string(::getpid()));
  AlignedBuffer room{64 * kPage};
  PastCacheTest() {
    std::mt19937 random(7);
    for (size_t i = 0; i < room.size(); ++i) room.get()[i] = static_cast<uint8_t>(random());
  }
  ~PastCacheTest() override { (void)fs.Unlink(path); }
  ByteSpan Piece(size_t from, size_t length) const { return {room.get() + from, length}; }
};

TEST_F(PastCacheTest, WritesTheBytesWhereverPiecesBeginAndEnd) {
  const std::vector<std::pair<size_t, size_t>> pieces = {
      {0, 4 * kPage}, {8 * kPage, 16 * kPage}, {3 * kPage, kPage}, {5, 100}, {kPage, 2 * kPage}, {0, 0}, {7, 5 * kPage + 3}};
  const auto file = fs.Create(path, 0644);
  ASSERT_TRUE(file.ok());
  (void)GoPastCache(**file);
  Bytes want;
  for (const auto& [from, length] : pieces) {
    ASSERT_TRUE((*file)->Append(Piece(from, length)).ok());
    want.insert(want.end(), room.get() + from, room.get() + from + length);
  }
  ASSERT_TRUE((*file)->Sync().ok());
  ASSERT_TRUE((*file)->Close().ok());
  EXPECT_TRUE(*fs.ReadFile(path) == want);
}

TEST_F(PastCacheTest, ReadsTheBytesFromAnyOffsetOnAnyThread) {
  {
    const auto file = fs.Create(path, 0644);
    ASSERT_TRUE((*file)->Append(Piece(0, 50 * kPage + 77)).ok());
  }
  const auto file = fs.Open(path);
  ASSERT_TRUE(file.ok());
  (void)GoPastCache(**file);
  std::vector<std::jthread> readers;
  for (unsigned seed = 0; seed < 4; ++seed) {
    readers.emplace_back([&, seed] {
      std::mt19937 random(seed);
      const AlignedBuffer out(50 * kPage);
      for (int i = 0; i < 300; ++i) {
        const bool ragged = i > 100 && random() % 2 == 0;  // pages first, so that nothing has given up yet
        const size_t offset = random() % 25 * kPage + (ragged ? random() % kPage : 0);
        const size_t length = (1 + random() % 20) * kPage + (ragged ? random() % kPage : 0);
        ASSERT_TRUE((*file)->Read(offset, {out.get(), length}).ok());
        ASSERT_TRUE(std::equal(out.get(), out.get() + length, room.get() + offset));
      }
    });
  }
  readers.clear();
  const AlignedBuffer out(8 * kPage);
  EXPECT_EQ((*file)->Read(48 * kPage, {out.get(), 8 * kPage}).code(), ErrorCode::kCorrupt);
}

TEST(PastCache, AFileSystemThatCannotSaysSo) {
  SimFileSystem fs;
  const auto file = fs.Create("/f", 0644);
  EXPECT_FALSE(GoPastCache(**file));
  EXPECT_FALSE(GoPastCache(**fs.Open("/f")));
}

}  // namespace
}  // namespace holdfast
