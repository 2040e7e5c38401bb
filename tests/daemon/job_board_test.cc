// SPDX-License-Identifier: Apache-2.0
//
// What a coordinator is told of the nodes.
#include "daemon/holdfastd/job_board.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

Beat SomeBeat() {
  Beat b;
  b.node = "n1";
  b.incarnation = Nonce::Random();
  b.count = 7;
  b.memory_bytes = 1 << 20;
  b.speed = 3;
  b.version = "1.2";
  b.numerics = "cpu/f32";
  return b;
}

TEST(JobBoard, ABeatIsToldAsItIs) {
  const Beat b = SomeBeat();
  const NodeView v = ViewOf(b);
  EXPECT_EQ(v.name, b.node);
  EXPECT_EQ(v.incarnation, b.incarnation);
  EXPECT_EQ(v.count, b.count);
  EXPECT_EQ(v.memory_bytes, b.memory_bytes);
  EXPECT_EQ(v.speed, b.speed);
  EXPECT_EQ(v.version, b.version);
  EXPECT_EQ(v.numerics, b.numerics);
  EXPECT_FALSE(v.draining || v.paused || v.storage_stalled);
}

// A node that speaks but waits for the directory cannot commit: the coordinator must hear of it, or its stage stays there.
TEST(JobBoard, ANodeThatWaitsForTheDirectoryIsToldAsStalled) {
  Beat b = SomeBeat();
  b.storage_stalled_ms = 15'000;
  EXPECT_TRUE(ViewOf(b).storage_stalled);
  b = SomeBeat();
  b.draining = true;
  EXPECT_TRUE(ViewOf(b).draining);
  b = SomeBeat();
  b.paused = true;
  EXPECT_TRUE(ViewOf(b).paused);
}

}  // namespace
}  // namespace holdfast
