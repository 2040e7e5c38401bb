// SPDX-License-Identifier: Apache-2.0
//
// Elections: a live owner is left alone, a dead one is replaced by one node within seconds, and many daemons rarely race.
#include "daemon/core/election.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>

#include "daemon/wire/beat_pace.h"
#include "tests/daemon/coordinator_testing.h"

namespace holdfast {
namespace {

using testing::kSecond;
using testing::NonceOf;

constexpr uint64_t kSilence = 6 * kSecond, kStep = 2 * kSecond;

TEST(Election, NothingBeforeTheJobIsKnown) {
  Election e("n1", kSilence, kStep);
  e.OnBeat("n1", NonceOf(1), 1, false, 0);
  EXPECT_FALSE(e.ShouldClaim(1000 * kSecond));
}

TEST(Election, AJobOfNobodyIsClaimedByTheFirstThenTheNext) {
  Election first("n1", kSilence, kStep), second("n2", kSilence, kStep), third("n3", kSilence, kStep);
  for (Election* e : {&first, &second, &third}) {
    uint64_t i = 0;
    for (const char* node : {"n1", "n2", "n3"}) e->OnBeat(node, NonceOf(++i), 1, false, 10 * kSecond);
    e->OnJob("", Nonce{}, false, 0, 10 * kSecond);
  }
  EXPECT_TRUE(first.ShouldClaim(10 * kSecond));
  EXPECT_TRUE(first.ShouldClaim(10 * kSecond + 1));  // until it was done
  EXPECT_FALSE(second.ShouldClaim(12 * kSecond - 1));
  EXPECT_TRUE(second.ShouldClaim(12 * kSecond));
  EXPECT_FALSE(third.ShouldClaim(14 * kSecond - 1));
  first.OnJob("n1", NonceOf(1), false, 1, 11 * kSecond);
  EXPECT_FALSE(first.ShouldClaim(11 * kSecond));
}

// Over a real NFS server: the coordinator lost the server and nothing else, its beats came on, and the job stood still for as long.
TEST(Election, AnOwnerThatWaitsForTheDirectoryIsReplaced) {
  Election e("n1", kSilence, kStep);
  uint64_t now = 10 * kSecond, count = 0;
  const auto turn = [&](bool stalled) {
    now += kSecond;
    ++count;
    e.OnBeat("n1", NonceOf(1), count, false, now);
    if (stalled) e.OnStalledBeat("n2", NonceOf(2), count, now);
    else e.OnBeat("n2", NonceOf(2), count, false, now);
    e.OnJob("n2", NonceOf(2), false, 5, now);
    return e.ShouldClaim(now);
  };
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(turn(false));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(turn(true)) << "it may be over, and heard late: the server was away for all";
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(turn(false)) << "it was over";
  uint64_t waited = 0;
  while (!turn(true) && waited < 60) ++waited;
  EXPECT_GE(waited, 6u);
  EXPECT_LE(waited, 12u);
}

// Up to 16 nodes a beat a second to each, then never more than about 16 a second to one node; what counts as silence grows with it.
TEST(Election, ManyNodesSpeakMoreRarely) {
  for (const size_t nodes : {1, 8, 16}) {
    EXPECT_EQ(BeatPaceOf(nodes).period_ns, kSecond);
    EXPECT_EQ(BeatPaceOf(nodes).silence_ns, kSilence);
  }
  for (size_t nodes = 2; nodes <= 64; ++nodes) {
    const BeatPace p = BeatPaceOf(nodes);
    EXPECT_LE((nodes - 1) * kSecond, 16 * p.period_ns) << nodes;
    EXPECT_GE(p.silence_ns, 3 * p.period_ns);
    EXPECT_GE(p.link_silent_ns, 3 * p.period_ns);
    EXPECT_GT(p.stale_words_ns, p.period_ns);
    if (nodes > 16) EXPECT_GT(p.gather_ns, 2 * p.period_ns) << "the first cut would leave out who was not heard twice yet";
  }
  EXPECT_EQ(BeatPaceOf(1000).period_ns, 4 * kSecond);
}

// The first two that live keep the whole job in mind, and nobody who has not listened for a while.
TEST(Election, TheFirstThatLiveAreDeputies) {
  Election first("n1", kSilence, kStep), second("n2", kSilence, kStep), third("n3", kSilence, kStep);
  EXPECT_FALSE(first.IsDeputy(100 * kSecond));
  uint64_t count = 0;
  const auto all_speak = [&](std::initializer_list<const char*> nodes, TimeNs now) {
    ++count;
    for (Election* e : {&first, &second, &third}) {
      e->OnJob("n1", NonceOf(1), false, 1, now);
      uint64_t i = 0;
      for (const char* node : nodes) e->OnBeat(node, NonceOf(++i), count, false, now);
    }
  };
  for (TimeNs now = 0; now < kSilence; now += kSecond) {
    all_speak({"n1", "n2", "n3"}, now);
    EXPECT_FALSE(first.IsDeputy(now) || second.IsDeputy(now) || third.IsDeputy(now)) << now;
  }
  all_speak({"n1", "n2", "n3"}, kSilence);
  EXPECT_TRUE(first.IsDeputy(kSilence) && second.IsDeputy(kSilence));
  EXPECT_FALSE(third.IsDeputy(kSilence));
  EXPECT_TRUE(third.IsDeputy(2 * kSilence)) << "the others are silent";
}

TEST(Election, AnOwnerLivesByBeatsOrByCommits) {
  Election e("n1", kSilence, kStep);
  e.OnJob("n2", NonceOf(2), false, 5, 0);
  TimeNs now = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    now += 5 * kSecond;
    e.OnBeat("n2", NonceOf(2), 100 + i, false, now);
    EXPECT_FALSE(e.ShouldClaim(now + kSecond / 2));
  }
  for (uint32_t i = 0; i < 20; ++i) {
    now += 5 * kSecond;
    e.OnJob("n2", NonceOf(2), false, 6 + i, now);
    EXPECT_FALSE(e.ShouldClaim(now + kSecond / 2));
  }
  e.OnBeat("n2", NonceOf(2), 119, false, now + 3 * kSecond);  // an old one again
  EXPECT_FALSE(e.ShouldClaim(now + kSilence - 1));
  EXPECT_TRUE(e.ShouldClaim(now + kSilence + kStep));
}

TEST(Election, ReleasedIsVacantAtOnceAndDrainingNodesStandBack) {
  Election e("n2", kSilence, kStep);
  e.OnBeat("n1", NonceOf(1), 1, true, 0);
  e.OnBeat("n2", NonceOf(2), 1, false, 0);
  e.OnJob("n3", NonceOf(3), false, 4, 0);
  EXPECT_FALSE(e.ShouldClaim(kSecond));
  e.OnJob("n3", NonceOf(3), true, 5, 2 * kSecond);
  EXPECT_TRUE(e.ShouldClaim(2 * kSecond));
  e.OnBeat("n2", NonceOf(2), 2, true, 2 * kSecond);
  EXPECT_FALSE(e.ShouldClaim(100 * kSecond));
}

TEST(Election, AnOwnerHeardUnderAnotherIncarnationIsDead) {
  Election e("n1", kSilence, kStep);
  e.OnBeat("n1", NonceOf(1), 1, false, 0);
  e.OnJob("n1", NonceOf(77), false, 3, 0);  // claimed before this process was born
  EXPECT_FALSE(e.ShouldClaim(kSecond));
  e.OnBeat("n1", NonceOf(1), 2, false, kSecond);
  EXPECT_TRUE(e.ShouldClaim(kSecond));
}

TEST(Election, AStaleBeatOfAFormerLifeDoesNotDethroneAnyone) {
  Election e("n1", kSilence, kStep);
  e.OnJob("n2", NonceOf(20), false, 3, 0);
  e.OnBeat("n2", NonceOf(20), 5, false, 0);
  e.OnBeat("n2", NonceOf(19), 900, false, kSecond);
  EXPECT_FALSE(e.ShouldClaim(kSecond));
  e.OnBeat("n2", NonceOf(20), 6, false, 2 * kSecond);
  e.OnBeat("n2", NonceOf(20), 7, false, 4 * kSecond);
  EXPECT_FALSE(e.ShouldClaim(9 * kSecond));
}

// Daemons that see beats and the stream with delays: whoever dies, someone claims within seconds, and races stay few.
TEST(Election, RandomDeathsAreFollowedByOneClaim) {
  uint64_t claims = 0, races = 0;
  for (uint32_t seed = 0; seed < 300; ++seed) {
    std::mt19937 rng(seed);
    const uint32_t n = 2 + rng() % 4;
    std::vector<std::unique_ptr<Election>> daemons;
    std::vector<bool> alive(n, true);
    std::vector<uint64_t> counts(n, 0);
    for (uint32_t i = 0; i < n; ++i) daemons.push_back(std::make_unique<Election>(std::string(1, static_cast<char>('a' + i)), kSilence, kStep));
    std::string owner;
    Nonce incarnation;
    uint32_t tail = 0;
    TimeNs vacant = 0;
    for (TimeNs t = 0; t < 300; ++t) {
      const TimeNs now = t * kSecond;
      if (t % 50 == 49 && !owner.empty()) {  // the coordinator dies, everyone else lives
        alive.assign(n, true);
        alive[static_cast<size_t>(owner[0] - 'a')] = false;
        vacant = now;
      }
      for (uint32_t from = 0; from < n; ++from) {
        counts[from] += alive[from];
        for (uint32_t to = 0; to < n; ++to) {
          if (alive[from] && rng() % 10 != 0) daemons[to]->OnBeat(std::string(1, static_cast<char>('a' + from)), NonceOf(from), counts[from], false, now);
        }
      }
      const uint32_t tail_before = tail;
      for (uint32_t i = 0; i < n; ++i) {
        if (!alive[i]) continue;
        if (tail == tail_before) daemons[i]->OnJob(owner, incarnation, false, tail, now);  // not who looks while it is being claimed
        if (!daemons[i]->ShouldClaim(now)) continue;
        if (tail != tail_before) {
          ++races;  // its link finds the number taken
          continue;
        }
        owner = std::string(1, static_cast<char>('a' + i));
        incarnation = NonceOf(i);
        ++tail;
        ++claims;
      }
      const bool led = !owner.empty() && alive[static_cast<size_t>(owner[0] - 'a')];
      ASSERT_TRUE(led || now - vacant <= kSilence + 3 * kStep) << "seed " << seed << " second " << t;
    }
    ASSERT_LE(tail, 7u) << "seed " << seed;
  }
  EXPECT_LT(races, claims);
}

}  // namespace
}  // namespace holdfast
