// SPDX-License-Identifier: Apache-2.0
//
// Cutting and placing against brute force on everything small, and the promises of placement.h on the rest.
#include "daemon/core/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "daemon/core/cutter.h"

namespace holdfast {
namespace {

// Every layer has a size of its own; the first stage carries the embedding, the last the head, each a base.
struct Model {
  std::vector<uint64_t> layer_bytes;
  uint64_t base = 0, embed = 0, head = 0;
  uint64_t Layers(uint32_t first, uint32_t last) const { return std::accumulate(layer_bytes.begin() + first, layer_bytes.begin() + last, uint64_t{0}); }
  uint64_t Ends(uint32_t first, uint32_t last) const { return (first == 0 ? embed : 0) + (last == layer_bytes.size() ? head : 0); }
  StageMemory Memory() const {
    return [this](uint32_t first, uint32_t last) { return base + Ends(first, last) + Layers(first, last); };
  }
  // A device with memory of its own, for the layers alone; what is at the ends is the host's.
  StageMemory OnGpu() const {
    return {[this](uint32_t first, uint32_t last) { return (Layers(first, last) + 1) / 2 + 1; }, nullptr, [this](uint32_t first, uint32_t last) { return base + Ends(first, last); }};
  }
  uint32_t layers() const { return static_cast<uint32_t>(layer_bytes.size()); }
};

NodeView Node(const std::string& name, uint64_t memory, uint64_t speed = 1) {
  NodeView n;
  n.name = name;
  n.memory_bytes = memory;
  n.speed = speed;
  return n;
}

std::string Name(uint32_t i) {
  std::string name("n");
  return name += std::to_string(i);
}

NodeView Gpu(const std::string& name, uint64_t memory, uint64_t host, uint64_t speed = 1) {
  NodeView n = Node(name, memory, speed);
  n.host_bytes = host;
  return n;
}

SeatMemory Mixed(const Model& model) {
  return SeatMemory([&model](const NodeView& seat) { return seat.host_bytes > 0 ? model.OnGpu() : model.Memory(); });
}

struct Case {
  Model model;
  std::vector<NodeView> nodes;
  SeatMemory Memory() const { return Mixed(model); }
};

Case RandomCase(uint32_t seed, uint32_t layers_max, uint32_t nodes_max) {
  std::mt19937 rng(seed);
  Case c;
  const uint32_t layers = 1 + rng() % layers_max, nodes = 1 + rng() % nodes_max;
  for (uint32_t l = 0; l < layers; ++l) c.model.layer_bytes.push_back(1 + rng() % 3);
  c.model.base = rng() % 3;
  c.model.embed = rng() % 3;
  c.model.head = rng() % 3;
  for (uint32_t i = 0; i < nodes; ++i) {
    c.nodes.push_back(Node(Name(i), 2 + rng() % 14, 1 + rng() % 4));
    if (rng() % 5 == 0) c.nodes.back().memory_elsewhere = rng() % 4;
    if (rng() % 12 == 0) c.nodes.back().draining = true;
  }
  for (NodeView& n : c.nodes) {
    if (seed % 2 == 1 && rng() % 2 == 0) n.host_bytes = 1 + rng() % 5;
  }
  return c;
}

// Tries everything: after each range any node that has none in this round, or a new round. The smallest slowest time, in layers / speed.
struct Brute {
  const Case& c;
  SeatMemory memory = c.Memory();
  double Best(uint32_t first, uint32_t used, uint32_t rounds) const {
    if (first == c.model.layers()) return 0;
    if (rounds == 0) return std::numeric_limits<double>::infinity();
    double best = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < c.nodes.size(); ++i) {
      if ((used >> i & 1u) || c.nodes[i].draining) continue;
      for (uint32_t last = first + 1; last <= c.model.layers() && memory.Fits(c.nodes[i], {first, last}, RoomOf(c.nodes[i])); ++last) {
        const double own = static_cast<double>(last - first) / static_cast<double>(c.nodes[i].speed);
        best = std::min(best, std::max(own, Best(last, used | 1u << i, rounds)));
      }
    }
    return used == 0 ? best : std::min(best, Best(first, 0, rounds - 1));
  }
};

const NodeView& Find(const std::vector<NodeView>& nodes, const std::string& name) {
  return *std::find_if(nodes.begin(), nodes.end(), [&](const NodeView& n) { return n.name == name; });
}

void ExpectCovers(const std::vector<PlacedRange>& ranges, LayerRange whole, const std::vector<NodeView>& nodes, const SeatMemory& memory) {
  uint32_t at = whole.first;
  for (const PlacedRange& r : ranges) {
    EXPECT_EQ(r.layers.first, at);
    EXPECT_GT(r.layers.second, r.layers.first);
    EXPECT_TRUE(memory.Fits(Find(nodes, r.node), r.layers, RoomOf(Find(nodes, r.node)))) << r.node;
    EXPECT_FALSE(Find(nodes, r.node).draining);
    at = r.layers.second;
  }
  EXPECT_EQ(at, whole.second);
}

double Slowest(const std::vector<PlacedRange>& ranges, const std::vector<NodeView>& nodes) {
  double slowest = 0;
  for (const PlacedRange& r : ranges) {
    slowest = std::max(slowest, static_cast<double>(r.layers.second - r.layers.first) / static_cast<double>(Find(nodes, r.node).speed));
  }
  return slowest;
}

// How often the node that works most often is named.
uint32_t Rounds(const std::vector<PlacedRange>& ranges) {
  std::map<std::string, uint32_t> times;
  uint32_t most = 0;
  for (const PlacedRange& r : ranges) most = std::max(most, ++times[r.node]);
  return most;
}

TEST(CutAndPlace, EqualsBruteForceOnEverythingSmall) {
  uint32_t possible = 0, several_rounds = 0;
  for (uint32_t seed = 0; seed < 4000; ++seed) {
    const Case c = RandomCase(seed, 7, 3);
    const SeatMemory memory = c.Memory();
    const auto cut = CutAndPlace(c.model.layers(), c.nodes, memory);
    const Brute brute{c};
    uint32_t rounds = 1;
    while (rounds <= c.model.layers() && std::isinf(brute.Best(0, 0, rounds))) ++rounds;
    ASSERT_EQ(cut.ok(), rounds <= c.model.layers()) << "seed " << seed;
    if (!cut.ok()) {
      EXPECT_EQ(cut.code(), ErrorCode::kResourceExhausted);
      continue;
    }
    ++possible;
    several_rounds += rounds > 1;
    ExpectCovers(*cut, {0, c.model.layers()}, c.nodes, memory);
    EXPECT_LE(Rounds(*cut), rounds) << "seed " << seed;
    EXPECT_DOUBLE_EQ(Slowest(*cut, c.nodes), brute.Best(0, 0, rounds)) << "seed " << seed;
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_GT(possible, 1000u);
  EXPECT_GT(several_rounds, 100u);
}

TEST(CutAndPlace, FewestNodesAmongEquallyFast) {
  const Model m{std::vector<uint64_t>(10, 1), 0, 0, 0};
  const std::vector<NodeView> nodes{Node("slow", 100, 1), Node("fast", 100, 4), Node("slower", 100, 1)};
  const auto cut = CutAndPlace(10, nodes, m.Memory());
  ASSERT_TRUE(cut.ok());
  ASSERT_EQ(cut->size(), 2u);  // 8 + 2 is as fast as 8 + 1 + 1
  EXPECT_DOUBLE_EQ(Slowest(*cut, nodes), 2.0);
}

TEST(CutAndPlace, TwoSparksAndA3090) {
  const Model m{std::vector<uint64_t>(88, 2'800'000'000), 3'000'000'000, 800'000'000, 800'000'000};
  const std::vector<NodeView> nodes{Node("rtx", 24'000'000'000, 70), Node("spark1", 128'000'000'000, 60), Node("spark2", 128'000'000'000, 60)};
  const auto cut = CutAndPlace(88, nodes, m.Memory());
  ASSERT_TRUE(cut.ok()) << cut.error().message;
  ExpectCovers(*cut, {0, 88}, nodes, m.Memory());
  EXPECT_EQ(cut->size(), 3u);
}

TEST(CutAndPlace, TheSameForEveryOrderOfNodes) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    Case c = RandomCase(seed, 12, 5);
    const auto one = CutAndPlace(c.model.layers(), c.nodes, c.Memory());
    std::shuffle(c.nodes.begin(), c.nodes.end(), std::mt19937(seed));
    const auto other = CutAndPlace(c.model.layers(), c.nodes, c.Memory());
    ASSERT_EQ(one.ok(), other.ok());
    if (!one.ok()) {
      EXPECT_EQ(one.error().message, other.error().message);
      continue;
    }
    ASSERT_EQ(one->size(), other->size());
    for (size_t i = 0; i < one->size(); ++i) {
      EXPECT_EQ((*one)[i].node, (*other)[i].node);
      EXPECT_EQ((*one)[i].layers, (*other)[i].layers);
    }
  }
}

TEST(CutAndPlace, ManyNodesStayWithinMemory) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    const Case c = RandomCase(seed, 40, 20);
    const auto cut = CutAndPlace(c.model.layers(), c.nodes, c.Memory());
    if (cut.ok()) ExpectCovers(*cut, {0, c.model.layers()}, c.nodes, c.Memory());
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
}

TEST(CutAndPlace, SaysWhichLayerLacksHowMuch) {
  const Model m{{1'000'000'000, 1'500'000'000, 1'000'000'000}, 0, 0, 0};
  const auto cut = CutAndPlace(3, {Node("a", 900'000'000), Node("b", 1'200'000'000)}, m.Memory());
  ASSERT_FALSE(cut.ok());
  EXPECT_EQ(cut.code(), ErrorCode::kResourceExhausted);
  EXPECT_NE(cut.error().message.find("layer 1 alone"), std::string::npos) << cut.error().message;
  EXPECT_NE(cut.error().message.find("needs 1.50 GB on b, which comes closest with 1.20 GB (300 MB short)"), std::string::npos) << cut.error().message;
  EXPECT_NE(cut.error().message.find("--memory"), std::string::npos);
  EXPECT_EQ(CutAndPlace(3, {}, m.Memory()).code(), ErrorCode::kResourceExhausted);
}

// 10 layers of 2 GB with 3 GB at each end. On the GPU a layer takes 1 GB; the ends are its host's.
const Model kMixed{std::vector<uint64_t>(10, 2'000'000'000), 0, 3'000'000'000, 3'000'000'000};
constexpr uint64_t kGb = 1'000'000'000;

TEST(MixedCluster, AGpuGetsWhatFitsIntoItNotWhatWouldFitACpu) {
  const std::vector<NodeView> nodes{Node("cpu", 14 * kGb), Gpu("gpu", 7 * kGb, 4 * kGb)};
  const auto cut = CutAndPlace(10, nodes, Mixed(kMixed));
  ASSERT_TRUE(cut.ok()) << cut.error().message;
  ASSERT_EQ(cut->size(), 2u);                       // by the CPU's figures the GPU would hold three layers at most
  EXPECT_DOUBLE_EQ(Slowest(*cut, nodes), 5.0);
  ExpectCovers(*cut, {0, 10}, nodes, Mixed(kMixed));
}

TEST(MixedCluster, AGpuWhoseHostIsTooSmallGetsTheLayersThatFitThere) {
  const std::vector<NodeView> nodes{Node("cpu", 40 * kGb), Gpu("gpu", 80 * kGb, 1 * kGb, 100)};
  const auto cut = CutAndPlace(10, nodes, Mixed(kMixed));
  ASSERT_TRUE(cut.ok()) << cut.error().message;
  ExpectCovers(*cut, {0, 10}, nodes, Mixed(kMixed));
  for (const PlacedRange& r : *cut) EXPECT_EQ(r.node, r.layers.first == 0 || r.layers.second == 10 ? "cpu" : "gpu");
}

TEST(MixedCluster, TheNoteNamesTheSeatThatLacksTheLeastAndOfWhat) {
  const std::vector<StageWish> whole{{.layers = {0, 10}, .asked = "", .owner = "", .pinned = false, .barred = {}}};
  const auto note = [&](const std::vector<NodeView>& nodes) { return PlaceStages(whole, nodes, Mixed(kMixed))[0].note; };
  EXPECT_EQ(note({Node("cpu", 14 * kGb), Gpu("gpu", 8 * kGb, 6 * kGb)}), "needs 10.0 GB on gpu, which comes closest with 8.00 GB (2.00 GB short)");
  EXPECT_EQ(note({Node("cpu", 14 * kGb), Gpu("gpu", 80 * kGb, 5 * kGb)}), "needs 6.00 GB of the host's memory on gpu, which comes closest with 5.00 GB (1.00 GB short)");
}

TEST(MixedCluster, AStageStreamsWhereItWasAskedForByTheModelOfThatSeat) {
  const StageMemory on_gpu([](uint32_t first, uint32_t last) { return (last - first) * kGb; }, [](uint32_t, uint32_t) { return kGb; }, [](uint32_t, uint32_t) { return 2 * kGb; });
  const StageMemory on_cpu([](uint32_t first, uint32_t last) { return (last - first) * 9 * kGb; }, [](uint32_t, uint32_t) { return 9 * kGb; });
  const SeatMemory memory([&](const NodeView& seat) { return seat.host_bytes > 0 ? on_gpu : on_cpu; });
  std::vector<StageWish> w{{.layers = {0, 4}, .asked = "gpu", .owner = "", .pinned = false, .barred = {}}};
  EXPECT_EQ(PlaceStages(w, {Node("cpu", 40 * kGb), Gpu("gpu", 2 * kGb, 2 * kGb)}, memory)[0].node, "gpu");
  EXPECT_EQ(PlaceStages(w, {Node("cpu", 40 * kGb), Gpu("gpu", 2 * kGb, 1 * kGb)}, memory)[0].node, "cpu");
}

TEST(SplitRange, FewestPieces) {
  uint32_t split = 0;
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    const Case c = RandomCase(seed, 9, 3);
    const SeatMemory memory = c.Memory();
    const LayerRange range{0, c.model.layers()};
    const auto pieces = SplitRange(range, c.nodes, memory);
    // The fewest, by a table over prefixes.
    constexpr uint32_t kNever = 1000;
    std::vector<uint32_t> fewest(range.second + 1, kNever);
    fewest[0] = 0;
    for (uint32_t last = 1; last <= range.second; ++last) {
      for (uint32_t first = 0; first < last; ++first) {
        const auto fits = [&](const NodeView& n) { return !n.draining && memory.Fits(n, {first, last}, RoomOf(n)); };
        if (std::any_of(c.nodes.begin(), c.nodes.end(), fits)) fewest[last] = std::min(fewest[last], fewest[first] + 1);
      }
    }
    ASSERT_EQ(pieces.has_value(), fewest[range.second] < kNever) << "seed " << seed;
    if (!pieces) continue;
    split += pieces->size() > 1;
    EXPECT_EQ(pieces->size(), fewest[range.second]) << "seed " << seed;
    ExpectCovers(*pieces, range, c.nodes, memory);
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_GT(split, 300u);
}

StageWish Wish(uint32_t first, uint32_t last) { return {.layers = {first, last}, .asked = "", .owner = "", .pinned = false, .barred = {}}; }

TEST(PlaceStages, PrefersAskedThenOwnerThenRoomThenLoad) {
  const Model m{std::vector<uint64_t>(10, 1), 0, 0, 0};
  const std::vector<NodeView> nodes{Node("a", 6), Node("b", 6), Node("c", 10)};
  std::vector<StageWish> w{Wish(0, 5)};
  w[0].asked = "b";
  w[0].owner = "c";
  EXPECT_EQ(PlaceStages(w, nodes, m.Memory())[0].node, "b");
  w[0].asked = "";
  EXPECT_EQ(PlaceStages(w, nodes, m.Memory())[0].node, "c");
  w[0].owner = "";
  EXPECT_EQ(PlaceStages(w, nodes, m.Memory())[0].node, "a");
  // a is taken: the next goes to the next; the third fits beside what c has, though c is as loaded as a.
  w = {Wish(0, 5), Wish(5, 10), Wish(0, 5), Wish(5, 10)};
  const auto places = PlaceStages(w, nodes, m.Memory());
  std::map<std::string, int> count;
  for (const auto& p : places) ++count[p.node];
  EXPECT_EQ(count["c"], 2);
  EXPECT_EQ(count["a"], 1);
  EXPECT_EQ(count["b"], 1);
}

TEST(PlaceStages, AFasterNodeTakesMoreAndAPausedOneNothingNew) {
  const Model m{std::vector<uint64_t>(8, 1), 0, 0, 0};
  std::vector<NodeView> nodes{Node("a", 100, 1), Node("b", 100, 3)};
  const std::vector<StageWish> w{Wish(0, 2), Wish(2, 4), Wish(4, 6), Wish(6, 8)};
  auto places = PlaceStages(w, nodes, m.Memory());
  EXPECT_EQ(std::count_if(places.begin(), places.end(), [](const StagePlace& p) { return p.node == "b"; }), 3);
  nodes[1].paused = true;
  places = PlaceStages(w, nodes, m.Memory());
  EXPECT_EQ(std::count_if(places.begin(), places.end(), [](const StagePlace& p) { return p.node == "b"; }), 0);
  nodes[0].memory_bytes = 1;  // better a paused one than none
  places = PlaceStages(w, nodes, m.Memory());
  EXPECT_EQ(std::count_if(places.begin(), places.end(), [](const StagePlace& p) { return p.node == "b"; }), 4);
}

TEST(PlaceStages, PromisesOnRandomWishes) {
  uint32_t waiting = 0;
  for (uint32_t seed = 0; seed < 3000; ++seed) {
    std::mt19937 rng(seed);
    const Case c = RandomCase(seed, 12, 5);
    const SeatMemory memory = c.Memory();
    std::vector<StageWish> wishes;
    for (uint32_t first = 0; first < c.model.layers();) {
      const uint32_t last = first + 1 + rng() % (c.model.layers() - first);
      StageWish w = Wish(first, last);
      const std::string some = Name(rng() % 6);
      if (rng() % 4 == 0) w.asked = some;
      if (rng() % 4 == 0) w.owner = Name(rng() % 6), w.pinned = rng() % 3 == 0;
      while (rng() % 4 == 0) w.barred.push_back(Name(rng() % 6));
      wishes.push_back(w);
      first = last;
    }
    const auto places = PlaceStages(wishes, c.nodes, memory);
    ASSERT_EQ(places.size(), wishes.size());
    for (size_t i = 0; i < places.size(); ++i) {
      const StageWish& w = wishes[i];
      if (w.pinned) {
        EXPECT_EQ(places[i].node, w.owner);
        continue;
      }
      std::set<std::string> fit;
      for (const NodeView& n : c.nodes) {
        const bool barred = std::find(w.barred.begin(), w.barred.end(), n.name) != w.barred.end();
        if (!barred && !n.draining && memory.Fits(n, w.layers, RoomOf(n))) fit.insert(n.name);
      }
      EXPECT_EQ(places[i].node.empty(), fit.empty());
      EXPECT_EQ(places[i].note.empty(), !fit.empty());
      waiting += fit.empty();
      if (fit.empty()) continue;
      EXPECT_TRUE(fit.contains(places[i].node));
      const std::string& preferred = fit.contains(w.asked) ? w.asked : w.owner;
      EXPECT_TRUE(!fit.contains(preferred) || places[i].node == preferred);
    }
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  EXPECT_GT(waiting, 100u);
}

TEST(PlaceStages, SaysByHowMuch) {
  const Model m{{600'000'000, 600'000'000}, 0, 0, 0};
  std::vector<StageWish> w{Wish(0, 2)};
  auto place = PlaceStages(w, {Node("n1", 1'000'000'000), Node("n2", 700'000'000)}, m.Memory())[0];
  EXPECT_EQ(place.note, "needs 1.20 GB on n1, which comes closest with 1.00 GB (200 MB short)");
  w[0].barred = {"n1"};
  place = PlaceStages(w, {Node("n1", 2'000'000'000), Node("n2", 700'000'000)}, m.Memory())[0];
  EXPECT_EQ(place.note, "needs 1.20 GB on n2, which comes closest with 700 MB (500 MB short)");
}

// In order of layers, each that still fits: nothing chosen could give way to an earlier one.
TEST(ChooseRunning, EarlierStagesComeFirst) {
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    std::mt19937 rng(seed);
    std::vector<LocalStage> stages;
    const uint32_t n = rng() % 6;
    for (uint32_t i = 0; i < n; ++i) stages.push_back({StageId(static_cast<uint16_t>(i)), (i * 7) % 11, 1 + rng() % 9});
    const uint64_t budget = rng() % 20;
    const auto chosen = ChooseRunning(stages, budget);
    const std::set<StageId> in(chosen.begin(), chosen.end());
    std::sort(stages.begin(), stages.end(), [](const LocalStage& a, const LocalStage& b) { return a.first_layer < b.first_layer; });
    uint64_t used = 0;
    for (const LocalStage& s : stages) {
      ASSERT_EQ(in.contains(s.stage), used + s.minimum_bytes <= budget) << "seed " << seed;
      if (in.contains(s.stage)) used += s.minimum_bytes;
    }
    ASSERT_LE(used, budget);
    ASSERT_TRUE(stages.empty() || stages[0].minimum_bytes > budget || in.contains(stages[0].stage));
  }
}

}  // namespace
}  // namespace holdfast
