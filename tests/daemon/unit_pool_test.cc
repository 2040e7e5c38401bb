// SPDX-License-Identifier: Apache-2.0
//
// Units evicted at once: each once, committed by one thread, and what an error leaves.
#include "daemon/worker/unit_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <thread>

namespace holdfast {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

LayerRecord RecordOf(uint32_t unit) {
  LayerRecord r;
  r.unit = unit;
  return r;
}

struct Pool {
  std::function<Result<LayerRecord>(uint32_t)> evict = [](uint32_t unit) { return RecordOf(unit); };
  std::function<Status(uint32_t)> also = [](uint32_t) { return OkStatus(); };
  std::vector<uint32_t> committed;
  std::set<std::thread::id> committers;
  Status Run(const std::vector<uint32_t>& units, uint32_t at_once) {
    return EvictUnits(units, at_once, {.evict = evict,
                                       .commit = [this](uint32_t unit, const LayerRecord& record) {
                                         EXPECT_EQ(record.unit, unit);
                                         committed.push_back(unit);
                                         committers.insert(std::this_thread::get_id());
                                         return also(unit);
                                       },
                                       .tick = [] {}});
  }
};

TEST(UnitPool, EveryUnitOnceAndCommittedByTheCaller) {
  for (const uint32_t at_once : {0u, 1u, 3u, 50u}) {
    Pool p;
    ASSERT_TRUE(p.Run({4, 2, 9, 7, 1}, at_once).ok());
    EXPECT_THAT(p.committed, UnorderedElementsAre(4, 2, 9, 7, 1));
    EXPECT_THAT(p.committers, ElementsAre(std::this_thread::get_id()));
    if (at_once <= 1) {
      EXPECT_THAT(p.committed, ElementsAre(4, 2, 9, 7, 1));
    }
  }
  Pool none;
  EXPECT_TRUE(none.Run({}, 4).ok());
}

TEST(UnitPool, ThatManyAtOnce) {
  std::atomic<int> now{0}, most{0};
  Pool p;
  p.evict = [&](uint32_t unit) -> Result<LayerRecord> {
    most = std::max(most.load(), ++now);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    --now;
    return RecordOf(unit);
  };
  std::vector<uint32_t> units(40);
  for (uint32_t i = 0; i < units.size(); ++i) units[i] = i;
  ASSERT_TRUE(p.Run(units, 3).ok());
  EXPECT_LE(most, 3);
}

TEST(UnitPool, AfterAnErrorNothingIsBegunAndNothingThatIsReadyIsLost) {
  std::atomic<int> begun{0};
  Pool p;
  p.evict = [&](uint32_t unit) -> Result<LayerRecord> {
    ++begun;
    if (unit == 2) return InvalidArgument("unit 2 is bad");
    return RecordOf(unit);
  };
  const Status status = p.Run({0, 1, 2, 3, 4, 5}, 1);
  EXPECT_EQ(status.code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(begun, 3);
  EXPECT_THAT(p.committed, ElementsAre(0, 1));
}

TEST(UnitPool, ACommitThatFailsEndsIt) {
  std::atomic<bool> failed{false};
  Pool p;
  p.evict = [&](uint32_t unit) -> Result<LayerRecord> {
    while (unit >= 5 && !failed) std::this_thread::yield();   // not sooner than the commit of unit 1
    if (unit >= 5) std::this_thread::sleep_for(std::chrono::milliseconds(100));   // and time for its failure to be known
    return RecordOf(unit);
  };
  p.also = [&](uint32_t unit) -> Status {
    if (unit != 1) return OkStatus();
    failed = true;
    return Fenced("somebody else claimed it");
  };
  EXPECT_EQ(p.Run({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 1).code(), ErrorCode::kFenced);
  EXPECT_THAT(p.committed, testing::IsSubsetOf({0, 1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(UnitPool, AsManyAsMemoryAndThreadsLet) {
  EXPECT_EQ(UnitsAtOnce(16, 0, 100), 1u);
  EXPECT_EQ(UnitsAtOnce(16, 250, 100), 3u);
  EXPECT_EQ(UnitsAtOnce(2, 1000, 100), 2u);
  EXPECT_EQ(UnitsAtOnce(0, 1000, 100), 1u);
  EXPECT_EQ(UnitsAtOnce(4, 1000, 0), 4u);
}

}  // namespace
}  // namespace holdfast
