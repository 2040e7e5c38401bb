// SPDX-License-Identifier: Apache-2.0
//
// Who may join under a name that somebody has already: a twin that lives, one that died, a machine made from the same image.
#include "daemon/holdfastd/membership.h"

#include <gmock/gmock.h>

#include "ledger/base/forwarding_file_system.h"
#include "ledger/base/sim_file_system.h"
#include "ledger/records/this_process.h"
#include "tests/ledger/ledger_testing.h"

namespace holdfast {
namespace {

using testing::HasSubstr;

const RootLayout kRoot("/root");

Membership::Options OptionsFor(const Nonce& root, const Incarnation& self) { return {.layout = kRoot, .root = root, .self = self}; }

// A machine whose twin speaks: each look at its beat finds a later one.
class Speaking final : public ForwardingFileSystem {
 public:
  Speaking(FileSystem& fs, Beat beat) : ForwardingFileSystem(fs), beat_(std::move(beat)) {}
  Result<std::unique_ptr<ReadableFile>> Open(const std::string& path) override {
    if (path == kRoot.Beat(beat_.incarnation)) {
      ++beat_.count;
      auto file = fs_.Create(path, 0644);
      const std::string text = beat_.Encode();
      if (!file.ok() || !(*file)->Append(AsBytes(text)).ok() || !(*file)->Close().ok()) return Internal("the test cannot write " + path);
    }
    return ForwardingFileSystem::Open(path);
  }

 private:
  Beat beat_;
};

// Two virtual machines made from one image have one host name and one machine-id: the other looks like this one before it was started again.
TEST(Membership, AClonedMachineThatLivesKeepsItsName) {
  SimFileSystem fs;
  RealClock clock;
  Incarnation self = DescribeThisProcess("n1", "holdfastd", "cpu"), clone = self;
  clone.nonce = Nonce::Random();
  clone.boot_id = "another boot";
  const auto root = EnsureRoot(fs, kRoot, clone.nonce);
  HOLDFAST_ASSERT_OK(root);
  HOLDFAST_ASSERT_OK(Membership::Join(fs, clock, OptionsFor(root->uuid, clone)));
  Beat beat;
  beat.root = root->uuid;
  beat.node = "n1";
  beat.incarnation = clone.nonce;
  Speaking speaking(fs, beat);
  const auto joined = Membership::Join(speaking, clock, OptionsFor(root->uuid, self));
  EXPECT_EQ(joined.code(), ErrorCode::kInvalidArgument);
  EXPECT_THAT(joined.error().message, HasSubstr("--takeover"));
}

// Its beats may stand still in what we see of the directory, and it may be alive all the same.
TEST(Membership, WhoAnswersKeepsItsName) {
  SimFileSystem fs;
  RealClock clock;
  Incarnation self = DescribeThisProcess("n1", "holdfastd", "cpu"), other = self;
  other.nonce = Nonce::Random();
  other.boot_id = "another boot";
  const auto root = EnsureRoot(fs, kRoot, other.nonce);
  HOLDFAST_ASSERT_OK(root);
  HOLDFAST_ASSERT_OK(Membership::Join(fs, clock, OptionsFor(root->uuid, other)));
  Membership::Options options = OptionsFor(root->uuid, self);
  Nonce asked;
  options.answers = [&](const Incarnation& who) {
    asked = who.nonce;
    return true;
  };
  EXPECT_EQ(Membership::Join(fs, clock, options).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(asked, other.nonce);
}

TEST(Membership, WhoDiedInThisBootIsReplaced) {
  SimFileSystem fs;
  RealClock clock;
  Incarnation self = DescribeThisProcess("n1", "holdfastd", "cpu"), dead = self;
  dead.nonce = Nonce::Random();
  dead.start_ticks -= 1;
  const auto root = EnsureRoot(fs, kRoot, dead.nonce);
  HOLDFAST_ASSERT_OK(root);
  HOLDFAST_ASSERT_OK(Membership::Join(fs, clock, OptionsFor(root->uuid, dead)));
  HOLDFAST_ASSERT_OK(Membership::Join(fs, clock, OptionsFor(root->uuid, self)));
}

}  // namespace
}  // namespace holdfast
