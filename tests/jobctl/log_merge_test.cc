// SPDX-License-Identifier: Apache-2.0
//
// Logs of several nodes as one, by time stamp.
#include "jobctl/log_merge.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

TEST(LogMerge, KnowsAStampFromOtherText) {
  EXPECT_TRUE(HasStamp("2026-11-21T03:12:44Z stage 1: worker died"));
  EXPECT_TRUE(HasStamp("2026-11-21 03:12:44 x"));
  EXPECT_FALSE(HasStamp("2026-11-21T03:12"));
  EXPECT_FALSE(HasStamp("terminate called after throwing"));
  EXPECT_FALSE(HasStamp(""));
}

TEST(LogMerge, OrdersByStampAndKeepsContinuationLinesBehindTheirs) {
  const std::string merged = MergeLogs({{"n1", "2026-11-21T03:00:00Z a\n  more of a\n2026-11-21T03:00:09Z c\n"}, {"spark2", "2026-11-21T03:00:05Z b\n"}});
  EXPECT_EQ(merged,
            "n1     2026-11-21T03:00:00Z a\n"
            "n1       more of a\n"
            "spark2 2026-11-21T03:00:05Z b\n"
            "n1     2026-11-21T03:00:09Z c\n");
}

TEST(LogMerge, OneLogStaysAsItIs) { EXPECT_EQ(MergeLogs({{"n1", "no stamp\n2026-11-21T03:00:00Z a\nlast without an end"}}), "no stamp\n2026-11-21T03:00:00Z a\nlast without an end\n"); }

TEST(LogMerge, EqualStampsStayInTheOrderOfTheNodes) {
  EXPECT_EQ(MergeLogs({{"a", "2026-11-21T03:00:00Z 1\n2026-11-21T03:00:00Z 2\n"}, {"b", "2026-11-21T03:00:00Z 3\n"}}),
            "a 2026-11-21T03:00:00Z 1\na 2026-11-21T03:00:00Z 2\nb 2026-11-21T03:00:00Z 3\n");
}

}  // namespace
}  // namespace holdfast
