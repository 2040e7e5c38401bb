// SPDX-License-Identifier: Apache-2.0
//
// The coordinator's rules, one by one: nodes that beat once a second, and a clock that the test turns.
#include "daemon/core/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/daemon/coordinator_testing.h"

namespace holdfast {
namespace {

using ::testing::HasSubstr;
using testing::CountingLedger;
using testing::kGb;
using testing::kSecond;
using testing::NonceOf;

constexpr char kTorch1[] = "cpu/bf16/avx2/libtorch-1.13.1";
constexpr char kTorch2[] = "cpu/bf16/avx2/libtorch-2.1.0";

// One coordinator, its ledger, and nodes that live while they are in `nodes`.
struct Desk {
  explicit Desk(CountingLedger l) : ledger(std::move(l)) { Reborn(); }
  CountingLedger ledger;
  std::map<std::string, NodeView> nodes;
  CoordinatorPolicy policy{.version = "1.0"};
  std::unique_ptr<Coordinator> coordinator;
  TimeNs now = 1000 * kSecond;
  std::vector<std::string> said;
  std::vector<Assign> assigns;
  std::optional<std::string> failed;
  bool commits = true;

  NodeView& Add(const std::string& name, uint64_t memory, uint64_t speed = 1) {
    NodeView& n = nodes[name];
    n.name = name;
    n.incarnation = NonceOf(++lives);
    n.memory_bytes = memory;
    n.speed = speed;
    n.version = "1.0";
    n.numerics = kTorch1;
    return n;
  }
  void Restart(const std::string& name) {
    nodes[name].incarnation = NonceOf(++lives);
    nodes[name].tasks.clear();
  }
  void Report(const std::string& node, size_t stage, const std::string& state, const std::string& code, const std::string& error) {
    nodes[node].tasks.push_back({.stage = ledger.stages()[stage].stage, .merge = false, .state = state, .error_code = code, .error = error});
  }
  // `name` has these devices and no others, all alike.
  NodeView& AddWith(const std::string& name, const std::vector<std::string>& devices, uint64_t memory_each) {
    NodeView& n = Add(name, memory_each * devices.size(), devices.size());
    for (const std::string& d : devices) n.devices.push_back({.name = d, .numerics = kTorch1, .memory_bytes = memory_each, .memory_elsewhere = 0, .speed = 1});
    return n;
  }
  void ReportOn(const std::string& node, const std::string& device, size_t stage, const std::string& error) {
    nodes[node].tasks.push_back({.stage = ledger.stages()[stage].stage, .merge = false, .state = "failed", .error_code = "internal", .error = error, .device = device});
  }
  void ReportMerge(const std::string& node, const std::string& code, const std::string& error) {
    nodes[node].tasks.push_back({.stage = StageId(0), .merge = true, .state = "failed", .error_code = code, .error = error});
  }
  // A new coordinator that knows the ledger and nobody.
  void Reborn() {
    coordinator = std::make_unique<Coordinator>(policy);
    See();
  }
  void See() {
    if (ledger.assignment()) Take(Assigned{*ledger.assignment()});
    Take(JobSeen{ledger.View()});
  }
  void Take(const CoordinatorEvent& event) {
    for (const CoordinatorAction& a : coordinator->Step(event, now)) {
      if (const auto* say = std::get_if<Say>(&a)) said.push_back(say->text);
      if (const auto* fail = std::get_if<FailJob>(&a)) failed = fail->detail;
      if (const auto* assign = std::get_if<Assign>(&a)) {
        assigns.push_back(*assign);
        if (commits) {
          ledger.Commit(*assign);
          See();
        }
      }
    }
  }
  void Run(uint64_t seconds) {
    for (uint64_t s = 0; s < seconds; ++s) {
      now += kSecond;
      for (auto& [name, n] : nodes) {
        ++n.count;
        Take(BeatSeen{n});
      }
      Take(Tick{});
    }
  }
  bool Said(const std::string& text) const {
    return std::any_of(said.begin(), said.end(), [&](const std::string& s) { return s.find(text) != std::string::npos; });
  }
  std::string Note(size_t i) const { return ledger.EntryOf(ledger.stages()[i]).note; }
  uint64_t lives = 0;
};

CountingLedger Given(const std::vector<uint32_t>& cut) {
  uint32_t layers = 0;
  for (const uint32_t n : cut) layers += n;
  CountingLedger l(layers, 10, cut);
  l.stages_given = true;
  return l;
}

// ---- nodes of several devices ----

TEST(Seats, ANodeOfOneDeviceIsItsSeat) {
  NodeView n;
  n.name = "n1";
  EXPECT_EQ(SeatsOf(n).size(), 1u);
  EXPECT_EQ(SeatsOf(n)[0].name, "n1");
  EXPECT_EQ(NodeOfSeat("n1"), "n1");
  EXPECT_EQ(DeviceOfSeat("n1"), "");
  EXPECT_EQ(SeatName("n1", ""), "n1");
  EXPECT_EQ(NodeOfSeat(SeatName("n1", "cuda:1")), "n1");
  EXPECT_EQ(DeviceOfSeat(SeatName("n1", "cuda:1")), "cuda:1");
}

TEST(CoordinatorDevices, EachDeviceGetsAStageThatFitsIt) {
  Desk d(CountingLedger(8, 10, {8}));
  d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  d.Run(5);
  ASSERT_EQ(d.ledger.stages().size(), 2u);
  EXPECT_EQ(d.ledger.stages()[0].last_layer, 4u);
  EXPECT_EQ(d.ledger.SeatOf(0), "box/cuda:0");
  EXPECT_EQ(d.ledger.SeatOf(1), "box/cuda:1");
  EXPECT_EQ(d.ledger.assignment()->stages[0].node, "box");   // who claims and lives is the node
  d.assigns.clear();
  d.Run(300);
  EXPECT_TRUE(d.assigns.empty());
}

TEST(CoordinatorDevices, TheMemoryOfTwoDevicesIsNotOne) {
  Desk d(Given({8}));
  d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  d.Run(5);
  EXPECT_EQ(d.ledger.SeatOf(0), "");                          // 8.1 GB do not fit 6, though 12 are there
  EXPECT_THAT(d.Note(0), HasSubstr("on box/cuda:0, which comes closest with 6.00 GB"));
}

TEST(CoordinatorDevices, OnNamesANodeAndItsDevicesShare) {
  Desk d(Given({2, 2}));
  d.ledger.on = {"box", "box"};
  d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  d.Add("n1", 6 * kGb);
  d.See();
  d.Run(3);
  EXPECT_EQ(d.ledger.SeatOf(0), "box/cuda:0");
  EXPECT_EQ(d.ledger.SeatOf(1), "box/cuda:1");
  d.assigns.clear();
  d.Run(300);
  EXPECT_TRUE(d.assigns.empty());
}

TEST(CoordinatorDevices, ALostNodeLosesTheStagesOfAllItsDevices) {
  Desk d(Given({2, 2}));
  d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  d.Run(5);
  d.Add("n1", 6 * kGb);
  d.nodes.erase("box");
  d.Run(125);
  EXPECT_EQ(d.ledger.SeatOf(0), "n1");
  EXPECT_EQ(d.ledger.SeatOf(1), "n1");
}

TEST(CoordinatorDevices, ADeadDeviceLosesItsStageToAnotherNodeFirst) {
  Desk d(Given({2, 2}));
  d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  d.Run(5);
  ASSERT_EQ(d.ledger.SeatOf(1), "box/cuda:1");
  d.Add("n1", 6 * kGb);
  d.Run(3);
  d.ReportOn("box", "cuda:1", 1, "cuda:1 is gone");
  d.Run(2);
  EXPECT_EQ(d.ledger.SeatOf(0), "box/cuda:0");
  EXPECT_EQ(d.ledger.SeatOf(1), "n1");
  EXPECT_TRUE(d.Said("box/cuda:1 gave up: cuda:1 is gone"));
  EXPECT_FALSE(d.failed.has_value());
}

TEST(CoordinatorDevices, WithoutAnotherNodeItGoesToTheOtherDevice) {
  Desk d(Given({2, 2}));
  d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  d.Run(5);
  d.ReportOn("box", "cuda:1", 1, "cuda:1 is gone");
  d.Run(300);
  EXPECT_EQ(d.ledger.SeatOf(1), "box/cuda:0");
  EXPECT_FALSE(d.failed.has_value());
  d.ReportOn("box", "cuda:0", 1, "it too");
  d.Run(60);
  ASSERT_TRUE(d.failed.has_value());
  EXPECT_THAT(*d.failed, HasSubstr("box/cuda:0, box/cuda:1"));
}

TEST(CoordinatorDevices, ADaemonStartedAnewWithOtherDevicesIsPlacedAnew) {
  Desk d(Given({2, 2}));
  d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  d.Run(5);
  d.nodes.erase("box");
  d.Add("box", 6 * kGb);                                      // one device now
  d.Run(5);
  EXPECT_EQ(d.ledger.SeatOf(0), "box");
  EXPECT_EQ(d.ledger.SeatOf(1), "box");
  d.nodes.erase("box");
  d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  d.Run(5);
  EXPECT_EQ(d.ledger.SeatOf(0), "box/cuda:0");
  EXPECT_EQ(d.ledger.SeatOf(1), "box/cuda:1");
}

TEST(CoordinatorDevices, AnIdleDeviceTakesWhatQueuesOnTheOther) {
  Desk d(Given({2, 2}));
  NodeView& box = d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  box.devices[1].memory_bytes = kGb;                          // somebody else has it
  d.Run(5);
  EXPECT_EQ(d.ledger.SeatOf(1), "box/cuda:0");
  d.nodes["box"].devices[1].memory_bytes = 6 * kGb;
  d.Run(200);
  EXPECT_NE(d.ledger.SeatOf(0), d.ledger.SeatOf(1));
}

TEST(CoordinatorDevices, DevicesOfAnotherClassGetNothingOfAReproducibleJob) {
  Desk d(Given({2, 2}));
  d.ledger.reproducible = true;
  NodeView& box = d.AddWith("box", {"cuda:0", "cuda:1"}, 6 * kGb);
  box.devices[1].numerics = "cuda/bf16/other/libtorch-1.13.1";
  box.devices[0].memory_bytes = 7 * kGb;
  d.See();
  d.Run(300);
  EXPECT_EQ(d.ledger.SeatOf(0), "box/cuda:0");
  EXPECT_EQ(d.ledger.SeatOf(1), "box/cuda:0");
  EXPECT_EQ(d.ledger.assignment()->numerics, kTorch1);
}

// ---- CPUs and GPUs ----

// Layers of 1 GB: on a GPU 0.5 GB each and 0.5 besides, and of its host 0.25 and 0.5 for each end (coordinator_testing.h).
NodeView& AddGpu(Desk& d, const std::string& name, uint64_t memory, uint64_t host, uint64_t speed = 1) {
  NodeView& n = d.Add(name, memory, speed);
  n.numerics = "cuda/bf16/some/libtorch-1.13.1";
  n.host_bytes = host;
  return n;
}

TEST(CoordinatorMixed, AGpuGetsAsManyLayersAsFitIntoItsOwnMemory) {
  Desk d(CountingLedger(12, 10, {12}));
  d.Add("cpu", 13 * kGb);
  AddGpu(d, "gpu", 5 * kGb, kGb, 10);                         // nine layers; by the CPU's figures four
  d.Run(5);
  ASSERT_EQ(d.ledger.stages().size(), 2u);
  for (const size_t i : {0, 1}) {
    const StagePlan& s = d.ledger.stages()[i];
    EXPECT_EQ(s.last_layer - s.first_layer, d.ledger.NodeOf(i) == "gpu" ? 9u : 3u);
  }
  d.assigns.clear();
  d.Run(300);
  EXPECT_TRUE(d.assigns.empty());
}

TEST(CoordinatorMixed, AGpuWhoseHostIsTooSmallIsNotTakenForItsOwnMemory) {
  Desk d(Given({6}));
  AddGpu(d, "gpu", 80 * kGb, kGb, 100);                       // both ends at once take 1.25 GB of the host's
  d.Run(60);
  EXPECT_EQ(d.ledger.NodeOf(0), "");
  EXPECT_EQ(d.Note(0), "needs 1.25 GB of the host's memory on gpu, which comes closest with 1.00 GB (250 MB short)");
  d.Add("cpu", 7 * kGb);
  d.Run(60);
  EXPECT_EQ(d.ledger.NodeOf(0), "cpu");
}

TEST(CoordinatorMixed, ALostCpusStageGoesToTheGpuThatHoldsItThoughACpuOfThatSizeWouldNot) {
  Desk d(Given({4, 4}));
  d.ledger.on = {"c1", "c2"};
  d.See();
  d.Add("c1", 5 * kGb);
  d.Add("c2", 5 * kGb);
  d.Run(5);
  ASSERT_EQ(d.ledger.NodeOf(1), "c2");
  d.Add("c3", 4 * kGb);
  AddGpu(d, "gpu", 3 * kGb, kGb);
  d.nodes.erase("c2");
  d.Run(130);
  EXPECT_EQ(d.ledger.NodeOf(0), "c1");
  EXPECT_EQ(d.ledger.NodeOf(1), "gpu");
}

TEST(CoordinatorMixed, ADaemonBornAnewWithLessOfItsHostLosesTheStageAndSaysWhy) {
  Desk d(Given({4}));
  AddGpu(d, "gpu", 3 * kGb, 2 * kGb, 10);
  d.Add("cpu", 5 * kGb);
  d.Run(5);
  ASSERT_EQ(d.ledger.NodeOf(0), "gpu");
  d.Restart("gpu");
  d.nodes["gpu"].host_bytes = kGb;
  d.Run(5);
  EXPECT_EQ(d.ledger.NodeOf(0), "cpu");
  EXPECT_TRUE(d.Said("gpu has 1.00 GB of the host's memory, it needs 1.25 GB (250000000 bytes more)"));
}

TEST(CoordinatorMixed, EachDeviceOfAHostIsJudgedByItsOwnModel) {
  Desk d(CountingLedger(8, 10, {8}));
  NodeView& box = d.AddWith("box", {"cpu", "cuda:0"}, 5 * kGb);
  box.devices[1].numerics = "cuda/bf16/some/libtorch-1.13.1";
  box.devices[1].host_bytes = kGb;
  d.Run(5);
  ASSERT_EQ(d.ledger.stages().size(), 2u);                    // of equal speed: four each; the CPU's 5 GB would not hold a fifth
  EXPECT_NE(d.ledger.SeatOf(0), d.ledger.SeatOf(1));
  EXPECT_FALSE(d.ledger.SeatOf(0).empty() || d.ledger.SeatOf(1).empty());
  box.devices[0].memory_bytes = 3 * kGb;                      // somebody else has it
  d.Run(200);
  for (const size_t i : {0, 1}) EXPECT_EQ(d.ledger.SeatOf(i), "box/cuda:0");
}

// ---- the first placement ----

TEST(CoordinatorStart, WaitsForNodesToGather) {
  Desk d(CountingLedger(12, 10, {12}));
  d.Add("n1", 20 * kGb);
  d.Run(2);
  EXPECT_TRUE(d.assigns.empty());
  d.Add("n2", 20 * kGb);
  d.Run(2);
  EXPECT_TRUE(d.assigns.empty());
  d.Run(2);
  ASSERT_EQ(d.assigns.size(), 1u);
  EXPECT_EQ(d.ledger.stages().size(), 2u);
  EXPECT_EQ(d.ledger.NodeOf(0), "n1");
  EXPECT_EQ(d.ledger.NodeOf(1), "n2");
  EXPECT_EQ(d.ledger.assignment()->why, "start");
}

TEST(CoordinatorStart, AStaleFirstBeatIsNoNode) {
  Desk d(CountingLedger(12, 10, {12}));
  d.Add("n1", 20 * kGb);
  NodeView dead = d.nodes["n1"];
  dead.name = "n0";
  for (int i = 0; i < 10; ++i) {
    d.Take(BeatSeen{dead});  // what its last life left in the directory
    d.Run(1);
  }
  ASSERT_EQ(d.assigns.size(), 1u);
  EXPECT_EQ(d.ledger.stages().size(), 1u);
  EXPECT_EQ(d.ledger.NodeOf(0), "n1");
}

TEST(CoordinatorStart, CutsInProportionToSpeed) {
  Desk d(CountingLedger(12, 10, {12}));
  d.Add("n1", 20 * kGb, 1);
  d.Add("n2", 20 * kGb, 3);
  d.Run(5);
  ASSERT_EQ(d.ledger.stages().size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const StagePlan& s = d.ledger.stages()[i];
    EXPECT_EQ(s.last_layer - s.first_layer, d.ledger.NodeOf(i) == "n1" ? 3u : 9u);
  }
}

TEST(CoordinatorStart, ShardLayersAreKeptExactly) {
  Desk d(Given({7, 1, 4}));
  d.Add("n1", 20 * kGb, 1);
  d.Add("n2", 20 * kGb, 100);
  d.Run(5);
  ASSERT_EQ(d.assigns.size(), 1u);
  EXPECT_TRUE(d.assigns[0].ranges.empty());
  EXPECT_EQ(d.ledger.stages().size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_NE(d.ledger.NodeOf(i), "");
}

TEST(CoordinatorStart, AllOfOnStartWithoutGathering) {
  Desk d(Given({4, 4}));
  d.ledger.on = {"n2", "n1"};
  d.See();
  d.Add("n1", 20 * kGb);
  d.Add("n2", 20 * kGb);
  d.Run(2);
  ASSERT_EQ(d.assigns.size(), 1u);
  EXPECT_EQ(d.ledger.NodeOf(0), "n2");
  EXPECT_EQ(d.ledger.NodeOf(1), "n1");
}

TEST(CoordinatorStart, AnUnknownNodeOfOnIsWaitedForThenPassedOver) {
  Desk d(Given({4, 4}));
  d.ledger.on = {"n1", "nx"};
  d.Reborn();
  d.Add("n1", 20 * kGb);
  d.Run(60);
  EXPECT_EQ(d.ledger.NodeOf(0), "n1");
  EXPECT_EQ(d.ledger.NodeOf(1), "");
  EXPECT_THAT(d.Note(1), HasSubstr("waits for nx, which --on asks for"));
  d.Run(70);
  EXPECT_EQ(d.ledger.NodeOf(1), "n1");
  EXPECT_EQ(d.assigns.size(), 2u);
  EXPECT_THAT(d.Note(1), HasSubstr("nx"));
}

TEST(CoordinatorStart, NobodyFitsWaitsWithTheShortfallAndStartsWithTheFirstThatDoes) {
  Desk d(Given({4}));
  d.Add("n1", 3 * kGb);
  d.Run(60);
  ASSERT_EQ(d.assigns.size(), 1u);
  EXPECT_EQ(d.ledger.NodeOf(0), "");
  EXPECT_EQ(d.Note(0), "needs 4.10 GB on n1, which comes closest with 3.00 GB (1.10 GB short)");
  EXPECT_TRUE(d.Said("stage 0 (layers 0-3) waits: needs 4.10 GB"));
  d.Add("n2", 5 * kGb);
  d.Run(2);
  EXPECT_EQ(d.ledger.NodeOf(0), "n2");
}

TEST(CoordinatorStart, GivenStagesAreNotSplitBeforeLargerNodesHadTheirTime) {
  Desk d(Given({4, 1}));
  d.Add("n1", 3 * kGb);
  d.Run(100);
  EXPECT_EQ(d.ledger.stages().size(), 2u);
  EXPECT_EQ(d.ledger.NodeOf(1), "n1");
  d.Run(60);
  ASSERT_EQ(d.ledger.stages().size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(d.ledger.NodeOf(i), "n1");
  EXPECT_TRUE(d.Said("stage 0 (layers 0-3) fits no node whole"));
}

TEST(CoordinatorStart, OneNodeThatIsTooSmallStreamsTheModel) {
  Desk d(CountingLedger(8, 10, {8}));
  d.ledger.streams = true;
  d.See();
  d.Add("n1", 3 * kGb);
  d.Run(60);
  ASSERT_EQ(d.ledger.stages().size(), 1u);   // not three, one after the other
  EXPECT_EQ(d.ledger.NodeOf(0), "n1");
}

TEST(CoordinatorStart, AStageIsStreamedWhereItWasAskedFor) {
  Desk d(Given({4, 1}));
  d.ledger.streams = true;
  d.ledger.on = {"n1", "n2"};
  d.See();
  d.Add("n1", 3 * kGb);
  d.Add("n2", 9 * kGb);
  d.Run(5);
  EXPECT_EQ(d.ledger.NodeOf(0), "n1");
  EXPECT_EQ(d.ledger.NodeOf(1), "n2");
}

// ---- nodes that go and come ----

struct ThreeStages : ::testing::Test {
  Desk d{Given({4, 4, 2})};
  void SetUp() override {
    d.ledger.on = {"n1", "n2", "n3"};
    d.See();
    d.Add("n1", 9 * kGb);
    d.Add("n2", 9 * kGb);
    d.Add("n3", 3 * kGb);
    d.Run(5);
    for (size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(d.ledger.NodeOf(i), "n" + std::string(1, static_cast<char>('1' + i)));
      d.ledger.Claim(d.ledger.stages()[i].stage, d.ledger.NodeOf(i));
    }
    d.See();
    d.assigns.clear();
    d.said.clear();
  }
};

TEST_F(ThreeStages, NothingChangesNothingIsSaid) {
  for (int minute = 0; minute < 120; ++minute) {
    d.Run(60);
    d.ledger.Work(d.ledger.stages()[0]);
    d.See();
  }
  EXPECT_TRUE(d.assigns.empty());
  EXPECT_TRUE(d.said.empty());
}

TEST_F(ThreeStages, ALostNodesStageGoesToOneThatFits) {
  d.nodes.erase("n3");
  d.Run(119);
  EXPECT_TRUE(d.assigns.empty());
  d.Run(2);
  ASSERT_EQ(d.assigns.size(), 1u);
  EXPECT_EQ(d.ledger.NodeOf(2), "n1");
  EXPECT_TRUE(d.Said("node n3 lost (silent for 120 s): stage 2 (layers 8-9) goes to n1"));
  EXPECT_EQ(d.ledger.assignment()->why, "node n3 lost (silent for 120 s)");
}

TEST_F(ThreeStages, ANodeThatIsHeardInTimeKeepsItsStage) {
  const NodeView n3 = d.nodes["n3"];
  for (int i = 0; i < 5; ++i) {
    d.nodes.erase("n3");
    d.Run(115);
    d.nodes["n3"] = n3;
    d.nodes["n3"].count += 1000 * static_cast<uint64_t>(i + 1);
    d.Restart("n3");
    d.Run(5);
  }
  EXPECT_TRUE(d.assigns.empty());
}

TEST_F(ThreeStages, CommitsAreASignOfLife) {
  d.nodes.erase("n3");
  for (int i = 0; i < 8; ++i) {
    d.Run(100);
    d.ledger.Work(d.ledger.stages()[2]);
    d.See();
  }
  EXPECT_TRUE(d.assigns.empty());
  d.Run(121);
  EXPECT_EQ(d.assigns.size(), 1u);
}

TEST_F(ThreeStages, AStalledNodeSpeaksButIsLost) {
  d.nodes["n3"].storage_stalled = true;
  d.Run(119);
  EXPECT_TRUE(d.assigns.empty());
  d.Run(2);
  EXPECT_EQ(d.ledger.NodeOf(2), "n1");
}

TEST_F(ThreeStages, ANewCoordinatorDoubtsForAWhile) {
  d.nodes.erase("n3");
  d.Run(100);
  d.Reborn();
  d.Run(119);
  EXPECT_TRUE(d.assigns.empty());
  d.Run(3);
  EXPECT_EQ(d.assigns.size(), 1u);
}

// It was itself stopped, or cut off: everybody was silent, so nobody was.
TEST_F(ThreeStages, AfterALongSilenceOfAllNobodyIsLost) {
  d.now += 1000 * kSecond;
  d.Take(Tick{});
  d.nodes.at("n1").count++;
  d.Take(BeatSeen{d.nodes["n1"]});
  d.Run(200);
  EXPECT_TRUE(d.assigns.empty());
  EXPECT_TRUE(d.said.empty());
}

TEST_F(ThreeStages, AReturnedNodeTakesBackWorkAfterTheTenure) {
  NodeView n3 = d.nodes["n3"];
  d.nodes.erase("n3");
  d.Run(121);
  ASSERT_EQ(d.ledger.NodeOf(2), "n1");
  d.nodes["n3"] = n3;
  d.Restart("n3");
  d.Run(58);
  EXPECT_TRUE(d.Said("node n3 is back"));
  EXPECT_EQ(d.ledger.NodeOf(2), "n1");
  d.Run(5);
  EXPECT_EQ(d.ledger.NodeOf(2), "n3");
  EXPECT_TRUE(d.Said("n3 has nothing to do: stage 2 (layers 8-9) goes to n3"));
  d.Run(3600);
  EXPECT_EQ(d.assigns.size(), 2u);
}

TEST_F(ThreeStages, AFlappingNodeDoesNotGetItsStageBack) {
  NodeView n3 = d.nodes["n3"];
  for (int i = 0; i < 20; ++i) {
    d.nodes.erase("n3");
    d.Run(150);
    d.nodes["n3"] = n3;
    d.Restart("n3");
    d.Run(30);
  }
  EXPECT_EQ(d.assigns.size(), 1u);
  EXPECT_EQ(d.ledger.NodeOf(2), "n1");
}

TEST_F(ThreeStages, AStageTooLargeForTheRestIsSplit) {
  d.nodes["n2"].memory_bytes = 4 * kGb;  // it has stage 1 already; it would not be given 4 layers anew
  d.nodes["n3"].memory_bytes = 4 * kGb;
  d.Run(2);
  ASSERT_EQ(d.ledger.NodeOf(1), "n1");   // and now it cannot keep it either
  d.assigns.clear();
  d.nodes.erase("n1");
  d.Run(121);
  ASSERT_EQ(d.assigns.size(), 1u);
  ASSERT_EQ(d.ledger.stages().size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_NE(d.ledger.NodeOf(i), "");
  EXPECT_EQ(d.ledger.NodeOf(4), "n3");   // as before
  EXPECT_TRUE(d.Said("node n1 lost (silent for 120 s); stage 0 (layers 0-3) fits no node whole and is cut: layers 0-1 to n2"));
}

TEST_F(ThreeStages, AStageTooLargeForTheOneThatIsLeftIsStreamedThere) {
  d.ledger.streams = true;
  d.See();
  d.nodes.erase("n1");
  d.nodes.erase("n2");
  d.Run(121);
  ASSERT_EQ(d.ledger.stages().size(), 3u);   // nothing is cut
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(d.ledger.NodeOf(i), "n3");
  EXPECT_TRUE(d.Said("node n1 lost (silent for 120 s); stage 0 (layers 0-3) fits no node whole and is streamed"));
  d.assigns.clear();
  d.Run(300);
  EXPECT_TRUE(d.assigns.empty());            // and there it stays
  d.Add("n4", 9 * kGb);
  d.Run(300);
  EXPECT_EQ(d.ledger.stages().size(), 3u);
}

TEST_F(ThreeStages, SealedRangesStayAsTheyAre) {
  d.ledger.Seal(d.ledger.stages()[0]);
  d.See();
  d.nodes.erase("n1");
  d.nodes.erase("n2");
  d.Run(121);
  ASSERT_EQ(d.ledger.stages().size(), 4u);  // 4 sealed; 4 split in two; 2
  EXPECT_EQ(d.ledger.stages()[0].last_layer, 4u);
  EXPECT_TRUE(d.ledger.Sealed(d.ledger.stages()[0]));
  for (size_t i = 1; i < 4; ++i) EXPECT_EQ(d.ledger.NodeOf(i), "n3");
}

TEST_F(ThreeStages, WaitsWhenNotEvenOneLayerFits) {
  d.nodes["n3"].memory_bytes = kGb;
  d.nodes["n2"].memory_bytes = kGb;
  d.nodes.erase("n1");
  d.Run(300);
  EXPECT_EQ(d.ledger.stages().size(), 3u);
  EXPECT_EQ(d.ledger.NodeOf(0), "");
  EXPECT_EQ(d.Note(0), "needs 4.10 GB on n2, which comes closest with 1.00 GB (3.10 GB short)");
}

TEST_F(ThreeStages, DrainMovesAndUndrainMayWorkAgain) {
  d.nodes["n1"].draining = true;
  d.Run(2);
  EXPECT_EQ(d.ledger.NodeOf(0), "n2");
  EXPECT_TRUE(d.Said("n1 drains: stage 0 (layers 0-3) goes to n2"));
  d.nodes["n1"].draining = false;
  d.Run(55);
  EXPECT_EQ(d.assigns.size(), 1u);
  d.Run(10);
  EXPECT_EQ(d.assigns.size(), 2u);  // it was there all the time: only the tenure of the stages counts
  EXPECT_TRUE(d.ledger.NodeOf(0) == "n1" || d.ledger.NodeOf(1) == "n1");
}

TEST_F(ThreeStages, DrainingTheLastOneWaits) {
  d.nodes.erase("n1");
  d.nodes.erase("n2");
  d.Run(125);
  const size_t last = d.ledger.stages().size() - 1;
  d.nodes["n3"].draining = true;
  d.Run(2);
  EXPECT_EQ(d.ledger.NodeOf(last), "");
  EXPECT_EQ(d.Note(last), "n3 drains");
  d.nodes["n3"].draining = false;
  d.Run(2);
  EXPECT_EQ(d.ledger.NodeOf(last), "n3");
}

// ---- refusals and failures ----

TEST_F(ThreeStages, ARefusalBarsTheNodeForTheJobUntilItIsBornAnew) {
  d.Report("n3", 2, "refused", "not_found", "source /m/model-1.safetensors is missing");
  d.Run(2);
  EXPECT_EQ(d.ledger.NodeOf(2), "n1");
  d.nodes.erase("n1");
  d.nodes.erase("n2");
  d.Run(125);
  EXPECT_EQ(d.ledger.NodeOf(0), "");
  EXPECT_THAT(d.Note(0), HasSubstr("n3 refused: source /m/model-1.safetensors is missing"));
  EXPECT_FALSE(d.failed.has_value());
  d.Restart("n3");
  d.Run(2);
  EXPECT_EQ(d.ledger.NodeOf(2), "n3");
}

TEST_F(ThreeStages, GivingUpMovesTheStage) {
  d.Report("n2", 1, "failed", "resource_exhausted", "out of memory at one sample on one thread");
  d.Run(2);
  EXPECT_EQ(d.ledger.NodeOf(1), "n1");
  EXPECT_TRUE(d.Said("n2 gave up: out of memory at one sample on one thread: stage 1 (layers 4-7) goes to n1"));
  d.Run(600);
  EXPECT_EQ(d.ledger.NodeOf(1), "n1");  // n2 is idle, and barred from this one; it gets nothing that has its node to itself
  EXPECT_FALSE(d.failed.has_value());
}

TEST_F(ThreeStages, NoFitNodeLeftFailsTheJob) {
  d.Report("n2", 1, "failed", "resource_exhausted", "first");
  d.Run(2);
  d.Report("n1", 1, "failed", "internal", "the last words");
  d.Run(60);
  ASSERT_TRUE(d.failed.has_value());
  EXPECT_THAT(*d.failed, HasSubstr("stage 1 (layers 4-7) was given up by n1, n2, and no other node can take it; the last reason: "));
  EXPECT_THAT(*d.failed, HasSubstr("jobctl resume JOB"));
  d.assigns.clear();
  d.Run(60);
  EXPECT_TRUE(d.assigns.empty());
}

TEST_F(ThreeStages, ASilentNodeThatFitsIsStillAHope) {
  d.nodes.erase("n1");
  d.Report("n2", 1, "failed", "resource_exhausted", "first");
  d.Run(100);
  EXPECT_FALSE(d.failed.has_value());
  d.Run(30);
  EXPECT_TRUE(d.failed.has_value());
}

TEST(CoordinatorFailure, ThreeNodesGivingUpAreEnough) {
  Desk d(Given({2}));
  for (const char* name : {"n1", "n2", "n3", "n4"}) d.Add(name, 5 * kGb);
  d.Run(5);
  for (int i = 0; i < 3; ++i) {
    ASSERT_FALSE(d.failed.has_value());
    d.Report(d.ledger.NodeOf(0), 0, "failed", "internal", "died three times");
    d.Run(2);
  }
  ASSERT_TRUE(d.failed.has_value());
  EXPECT_THAT(*d.failed, HasSubstr("n1, n2, n3"));
}

TEST_F(ThreeStages, BadInputFailsAtOnce) {
  for (const char* code : {"invalid_argument", "unsupported", "corrupt"}) {
    Desk one(Given({2}));
    one.policy.job = "a1b2";
    one.Reborn();
    one.Add("n1", 5 * kGb);
    one.Add("n2", 5 * kGb);
    one.Run(5);
    one.Report("n1", 0, "failed", code, "model.safetensors: tensor x: bad shape");
    one.Run(1);
    ASSERT_TRUE(one.failed.has_value()) << code;
    EXPECT_THAT(*one.failed, HasSubstr("stage 0 on n1: model.safetensors: tensor x: bad shape"));
    EXPECT_THAT(*one.failed, HasSubstr("jobctl resume a1b2"));
  }
}

TEST_F(ThreeStages, AFencedTaskAndAStrangersFailureAreNone) {
  d.Report("n3", 2, "fenced", "fenced", "stage.02 belongs to n1 now");
  d.Report("n1", 2, "failed", "corrupt", "of the time when it was here");
  d.Run(60);
  EXPECT_TRUE(d.assigns.empty());
  EXPECT_FALSE(d.failed.has_value());
}

// ---- who may work ----

TEST_F(ThreeStages, AnotherVersionGetsNothingAndBothAreNamed) {
  d.Add("n4", 100 * kGb).version = "0.9";
  d.nodes.erase("n1");
  d.Run(125);
  EXPECT_EQ(d.ledger.NodeOf(0), "n2");
  EXPECT_TRUE(d.Said("n4 has holdfast 0.9, this job is coordinated by 1.0: it gets nothing of this job"));
  EXPECT_EQ(std::count_if(d.said.begin(), d.said.end(), [](const std::string& s) { return s.starts_with("n4"); }), 1);
  d.nodes.erase("n2");
  d.nodes.erase("n3");
  d.Run(125);
  EXPECT_THAT(d.Note(0), HasSubstr("n4 has holdfast 0.9, this job is coordinated by 1.0"));
}

TEST_F(ThreeStages, AnotherLibtorchGetsNothingAndBothAreNamed) {
  d.Add("n4", 100 * kGb).numerics = kTorch2;
  d.nodes.erase("n1");
  d.Run(125);
  EXPECT_EQ(d.ledger.NodeOf(0), "n2");
  EXPECT_TRUE(d.Said("n4 has libtorch-2.1.0, this job has libtorch-1.13.1: it gets nothing"));
}

TEST(CoordinatorClasses, TheFoldRemembersTheLibtorchOfTheFirstClaim) {
  Desk d(Given({2}));
  d.ledger.numerics = kTorch2;
  d.See();
  d.Add("n1", 50 * kGb);
  d.Add("n2", 5 * kGb).numerics = kTorch2;
  d.Run(5);
  EXPECT_EQ(d.ledger.NodeOf(0), "n2");
}

TEST(CoordinatorClasses, ReproduciblePinsTheMostCapableClass) {
  Desk d(CountingLedger(6, 10, {6}));
  d.ledger.reproducible = true;
  d.See();
  d.Add("n1", 5 * kGb, 1).numerics = "cuda/sm_86/libtorch-1.13.1";
  d.Add("n2", 4 * kGb, 1).numerics = "cuda/sm_121/libtorch-1.13.1";
  d.Add("n3", 4 * kGb, 1).numerics = "cuda/sm_121/libtorch-1.13.1";
  d.Run(5);
  ASSERT_EQ(d.assigns.size(), 1u);
  EXPECT_EQ(d.assigns[0].numerics, "cuda/sm_121/libtorch-1.13.1");
  EXPECT_EQ(d.ledger.NodeOf(0), "n2");
  EXPECT_EQ(d.ledger.NodeOf(1), "n3");
  d.nodes.erase("n2");
  d.nodes.erase("n3");
  d.Run(125);
  EXPECT_EQ(d.ledger.NodeOf(0), "");
  EXPECT_THAT(d.Note(0), HasSubstr("n1 computes as cuda/sm_86/libtorch-1.13.1, this job is pinned to cuda/sm_121/libtorch-1.13.1 (--reproducible)"));
  d.Reborn();
  d.Run(300);
  EXPECT_EQ(d.ledger.NodeOf(0), "");
  EXPECT_EQ(d.ledger.assignment()->numerics, "cuda/sm_121/libtorch-1.13.1");
}

TEST(CoordinatorClasses, AClassInWhichTheWorkDoesNotFitIsNotPinned) {
  Desk d(Given({6}));
  d.ledger.reproducible = true;
  d.See();
  for (const char* name : {"n1", "n2", "n3"}) d.Add(name, 5 * kGb).numerics = "cuda/sm_86/libtorch-1.13.1";
  d.Add("n4", 7 * kGb).numerics = "cpu/libtorch-1.13.1";
  d.Run(5);
  EXPECT_EQ(d.ledger.NodeOf(0), "n4");
}

// ---- idle nodes ----

TEST(CoordinatorBalance, AQueuedStageGoesToANewNodeButNotBeforeItsTenure) {
  Desk d(Given({4, 4}));
  d.Add("n1", 5 * kGb);
  d.Run(20);
  d.Add("n2", 5 * kGb);
  d.Run(50);
  EXPECT_EQ(d.assigns.size(), 1u);
  d.Run(15);
  ASSERT_EQ(d.assigns.size(), 2u);
  EXPECT_EQ(d.ledger.NodeOf(0), "n1");
  EXPECT_EQ(d.ledger.NodeOf(1), "n2");
}

TEST(CoordinatorBalance, ANodeMuchSlowerIsNotWorthTheMove) {
  Desk d(Given({4, 4}));
  d.Add("n1", 5 * kGb, 100);
  d.Add("n2", 5 * kGb, 1);
  d.Run(600);
  EXPECT_EQ(d.assigns.size(), 1u);
}

TEST(CoordinatorBalance, WhatTheUserAskedForStaysThere) {
  Desk d(Given({4, 4}));
  d.ledger.on = {"n1", "n1"};
  d.See();
  d.Add("n1", 5 * kGb);
  d.Add("n2", 5 * kGb);
  d.Run(600);
  EXPECT_EQ(d.assigns.size(), 1u);
  EXPECT_EQ(d.ledger.NodeOf(1), "n1");
}

TEST(CoordinatorBalance, ALargeNodeThatComesLateTakesSeveralPieces) {
  Desk d(CountingLedger(12, 10, {12}));
  d.Add("n1", 3 * kGb);
  d.Run(10);
  ASSERT_EQ(d.ledger.stages().size(), 6u);
  d.Add("n2", 20 * kGb);
  d.Run(100);
  size_t on_n2 = 0;
  for (size_t i = 0; i < 6; ++i) on_n2 += d.ledger.NodeOf(i) == "n2";
  EXPECT_EQ(on_n2, 3u);
  EXPECT_EQ(d.assigns.size(), 2u);
}

// ---- the merge ----

struct Merging : ThreeStages {
  void SetUp() override {
    ThreeStages::SetUp();
    d.nodes["n1"].paused = true;
    d.nodes["n2"].speed = 5;
    d.Run(1);
    for (const StagePlan& s : d.ledger.stages()) d.ledger.Seal(s);
    d.See();
    d.Run(2);
    ASSERT_EQ(d.ledger.assignment()->merge_node, "n2");
    d.assigns.clear();
  }
};

TEST_F(Merging, StaysWhereItIs) {
  d.Run(3600);
  EXPECT_TRUE(d.assigns.empty());
  d.Reborn();
  d.Run(3600);
  EXPECT_TRUE(d.assigns.empty());
  d.ledger.done = true;
  d.See();
  d.nodes.erase("n2");
  d.Run(3600);
  EXPECT_TRUE(d.assigns.empty());
}

TEST_F(Merging, MovesWithALostOrDrainingNode) {
  d.nodes.erase("n2");
  d.Run(119);
  EXPECT_TRUE(d.assigns.empty());
  d.Run(2);
  EXPECT_EQ(d.ledger.assignment()->merge_node, "n3");
  EXPECT_TRUE(d.Said("node n2 lost (silent for 120 s): the merge goes to n3"));
  d.nodes["n3"].draining = true;
  d.Run(2);
  EXPECT_EQ(d.ledger.assignment()->merge_node, "n1");  // better a paused one than none
}

TEST_F(Merging, AFailureThatIsNotTheInputsMovesIt) {
  d.ReportMerge("n2", "resource_exhausted", "no space left on /out");
  d.Run(2);
  EXPECT_EQ(d.ledger.assignment()->merge_node, "n3");
  d.ReportMerge("n3", "resource_exhausted", "no space left on /out");
  d.Run(2);
  d.ReportMerge("n1", "resource_exhausted", "no space left on /out");
  d.Run(2);
  ASSERT_TRUE(d.failed.has_value());
  EXPECT_THAT(*d.failed, HasSubstr("the merge was given up by n1, n2, n3"));
}

TEST_F(Merging, ABadPackEndsTheJob) {
  d.ReportMerge("n2", "corrupt", "pack ab12: digest differs");
  d.Run(1);
  ASSERT_TRUE(d.failed.has_value());
  EXPECT_THAT(*d.failed, HasSubstr("the merge on n2: pack ab12"));
}

// ---- its own commits ----

TEST(CoordinatorCommits, OneProposalAtATimeAndAgainWhenNobodyCommittedIt) {
  Desk d(Given({2}));
  d.commits = false;
  d.Add("n1", 5 * kGb);
  d.Run(9);
  EXPECT_EQ(d.assigns.size(), 1u);
  d.Run(5);
  EXPECT_EQ(d.assigns.size(), 2u);
  d.commits = true;
  d.Run(6);
  EXPECT_EQ(d.assigns.size(), 3u);
  d.Run(60);
  EXPECT_EQ(d.assigns.size(), 3u);
}

TEST(CoordinatorCommits, WaitsForTheFoldToCatchUpWithItsPlan) {
  Desk d(CountingLedger(4, 10, {4}));
  d.commits = false;
  d.Add("n1", 5 * kGb);
  d.Add("n2", 5 * kGb);
  d.Run(5);
  ASSERT_EQ(d.assigns.size(), 1u);
  const JobView old = d.ledger.View();
  d.ledger.Commit(d.assigns[0]);
  d.Take(Assigned{*d.ledger.assignment()});
  for (int i = 0; i < 30; ++i) {
    d.Take(JobSeen{old});
    d.Run(1);
  }
  EXPECT_EQ(d.assigns.size(), 1u);
  d.See();
  d.Run(60);
  EXPECT_EQ(d.assigns.size(), 1u);
}

TEST(CoordinatorCommits, NotesThatWobbleAreWrittenSeldom) {
  Desk d(Given({4}));
  d.Add("n1", kGb / 2);
  for (int i = 0; i < 1800; ++i) {
    d.nodes["n1"].memory_elsewhere = static_cast<uint64_t>(i % 7) * kGb / 100;
    d.Run(1);
  }
  EXPECT_LE(d.assigns.size(), 31u);
  EXPECT_GE(d.assigns.size(), 2u);
}

TEST(CoordinatorOmissions, ABlameIsFollowedOnceAsLongAsTheJobAllowsIt) {
  Coordinator c({});
  const auto ledger = Given({2, 2});
  JobView view = ledger.View();
  view.samples = 8;
  view.skips_left = 1;
  const auto omits = [&](TimeNs now) {
    std::vector<uint32_t> samples;
    for (const CoordinatorAction& a : c.Step(JobSeen{view}, now)) {
      if (const auto* o = std::get_if<Omit>(&a)) samples.push_back(o->sample);
    }
    return samples;
  };
  EXPECT_TRUE(omits(1).empty());
  view.stages[1].blame = BlameView{5, "ended 2 workers"};
  EXPECT_EQ(omits(2), (std::vector<uint32_t>{5}));      // no node has to be heard for it
  EXPECT_TRUE(omits(3).empty());                        // it is on its way
  EXPECT_EQ(omits(60'000'000'000), (std::vector<uint32_t>{5}));   // nobody committed it
  view.stages[1].blame.reset();
  view.omitted = {5};
  view.skips_left = 0;
  EXPECT_TRUE(omits(61'000'000'000).empty());
  view.stages[0].blame = BlameView{3, "ended 2 workers"};   // the budget is used up: its worker says so
  EXPECT_TRUE(omits(62'000'000'000).empty());
}

TEST(CoordinatorOmissions, OneAtATime) {
  Coordinator c({});
  const auto ledger = Given({2, 2});
  JobView view = ledger.View();
  view.samples = 8;
  view.skips_left = 2;
  view.stages[0].blame = BlameView{3, "ended 2 workers"};
  view.stages[1].blame = BlameView{5, "ended 2 workers"};
  uint32_t omits = 0;
  for (const CoordinatorAction& a : c.Step(JobSeen{view}, 1)) omits += std::holds_alternative<Omit>(a);
  EXPECT_EQ(omits, 1u);
}

}  // namespace
}  // namespace holdfast
