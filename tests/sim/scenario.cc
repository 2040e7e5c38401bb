// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/scenario.h"

#include <algorithm>

#include "tests/sim/checkers.h"

namespace holdfast::sim {
namespace {

constexpr uint64_t kAfterwardsNs = 3 * kSecond;  // what is still on its way when the job is done
constexpr int64_t kDaySeconds = 86'400;
constexpr uint64_t kQuietNs = 400 * kSecond;     // after the last fault; longer than any cache and all patience of the coordinator

class Scenario {
 public:
  explicit Scenario(const RunOptions& options)
      : options_(options), random_(Mix(options.seed, 9)), cluster_(Draw()), watch_(cluster_) {
    faults_ns_ = random_.Between(10, 60) * kSecond;
    cluster_.server.on_wish_to_crash = [this] { CrashServer(random_.Between(1, 10) * kSecond); };
  }

  RunResult Run() {
    for (auto& [name, node] : cluster_.nodes) SetTroubles(*node);
    // Nodes that looked for a job before there was one may remember that there is none.
    if (random_.Chance(300)) {
      PowerOn();
      for (const uint64_t until = cluster_.world.now() + 3 * kSecond; cluster_.world.now() < until && cluster_.world.Step();) {
      }
    }
    cluster_.Submit();
    faults_on_ = true;
    begin_ = cluster_.world.now();
    PowerOn();
    NextFault();
    BreakADevice();
    WriteBackSometimes();
    cluster_.world.At(begin_ + faults_ns_, [this] { EndFaults(); });
    const uint64_t end = begin_ + faults_ns_ + kQuietNs;
    while (cluster_.world.now() < end && cluster_.world.Step()) {
      if (!cluster_.Done()) continue;
      EndFaults();                                 // nothing is left to be broken
      if (cluster_.world.now() > quiet_since_ + kAfterwardsNs) break;
    }
    return Judge();
  }

 private:
  ClusterOptions Draw() {
    ClusterOptions o;
    o.seed = options_.seed;
    o.trace = options_.trace;
    o.shape.layers = static_cast<uint32_t>(random_.Between(2, 3));
    o.shape.samples = static_cast<uint32_t>(random_.Between(2, 6));
    if (random_.Chance(700)) {
      for (uint32_t left = o.shape.layers; left > 0; left -= o.shape.cut.back()) o.shape.cut.push_back(static_cast<uint32_t>(random_.Between(1, left)));
    }
    if (random_.Chance(60)) o.kind = NfsServer::Export::kAsync;
    o.suspect_ns = random_.Between(4, 12) * kSecond;
    o.tenure_ns = o.suspect_ns / 2;
    o.edges = random_.Chance(800);
    o.clonable = random_.Chance(250);
    const uint32_t recompute = random_.Chance(200) ? 300 : 0;
    const uint64_t count = random_.Between(1, 4);
    for (uint64_t i = 0; i < count; ++i) {
      NodeOptions n;
      n.name = "n" + std::to_string(i);
      n.speed = random_.Between(1, 3);
      n.compute_ns = random_.Between(100, 3000) * kMs / n.speed;
      n.wall_skew_s = static_cast<int64_t>(random_.Below(200'000)) - 100'000;
      n.recompute = recompute;
      o.nodes.push_back(n);
    }
    DrawPoison(&o);
    DrawStreamed(&o);
    DrawDevices(&o);
    if (options_.mutant != Mutant::kNone) o.wrap = [m = options_.mutant](FileSystem& fs) { return WrapMutant(m, fs); };
    return o;
  }

  // Samples that cannot be computed, and a budget for them. By numbers of their own: the histories of all other seeds are what they were without this.
  void DrawPoison(ClusterOptions* o) const {
    Random random(Mix(options_.seed, 17));
    if (!random.Chance(120)) return;
    o->shape.skip = static_cast<uint32_t>(random.Between(1, std::min<uint64_t>(2, o->shape.samples - 1)));
    const uint64_t bad = random.Between(1, o->shape.skip);
    while (o->poison.size() + o->infinite.size() < bad) {
      const uint32_t sample = static_cast<uint32_t>(random.Below(o->shape.samples));
      const auto has = [&](const std::vector<uint32_t>& list) { return std::find(list.begin(), list.end(), sample) != list.end(); };
      if (!has(o->poison) && !has(o->infinite)) (random.Chance(700) ? o->poison : o->infinite).push_back(sample);
    }
  }

  // Nodes too small for a stage of several layers. By numbers of their own, too.
  void DrawStreamed(ClusterOptions* o) const {
    Random random(Mix(options_.seed, 23));
    if (!random.Chance(300)) return;
    for (NodeOptions& n : o->nodes) n.layers_at_once = random.Chance(700) ? 1 : static_cast<uint32_t>(random.Below(3));
    for (NodeOptions& n : o->nodes) n.cuts_kept = random.Chance(500) ? 1000 : static_cast<uint32_t>(random.Below(500));
  }

  // Nodes of two devices. By numbers of their own, too.
  void DrawDevices(ClusterOptions* o) const {
    Random random(Mix(options_.seed, 29));
    if (!random.Chance(250)) return;
    for (NodeOptions& n : o->nodes) n.devices = random.Chance(600) ? 2 : 1;
  }

  // One of two devices breaks, for a while or until faults end. Not beside samples that end workers: nobody could tell them apart.
  void BreakADevice() {
    Random random(Mix(options_.seed, 31));
    for (auto& [name, node] : cluster_.nodes) {
      if (node->options.devices < 2 || cluster_.options.shape.skip > 0 || !random.Chance(600)) continue;
      const uint64_t from = random.Between(0, 20) * kSecond, to = from + random.Between(5, 60) * kSecond;
      const std::string device = "gpu:" + std::to_string(random.Below(2));
      cluster_.world.After(from, [this, n = node.get(), device] {
        if (faults_on_) n->broken = device;
      });
      cluster_.world.After(to, [n = node.get()] { n->broken.clear(); });
    }
  }

  // Each seed has its own mix: some faults often, most of them never.
  void SetTroubles(SimNode& node) {
    const auto some = [&](uint32_t share, uint32_t most) { return random_.Chance(share) ? static_cast<uint32_t>(random_.Between(1, most)) : 0; };
    NfsTroubles& t = node.kernel.troubles;
    t.eio = some(150, 4);
    t.estale = some(200, 15);
    t.lost_link = some(400, 100);
    t.late_link = some(400, 100);
    t.stale_list = some(400, 400);
    t.torn_list = some(400, 300);
    t.negative_dentries = some(500, 1000);
    t.stale_attributes = some(400, 500);
    t.die_at_call = some(400, 300);
    t.pause_at_call = some(400, 150);
    t.crash_at_fsync = some(200, 1500);
    if (random_.Chance(200)) node.kernel.rpc_ns_max = random_.Between(3, 60) * kMs;
    cluster_.net.loss = some(400, 300);
    cluster_.net.duplicate = some(400, 300);
    cluster_.net.delay_ns_max = random_.Between(1, 4000) * kMs;
  }

  void PowerOn() {
    for (auto& [name, node] : cluster_.nodes) node->PowerOn();
  }

  void NextFault() {
    const uint64_t pause = random_.Between(200, 5000) * kMs;
    cluster_.world.After(pause, [this] {
      if (!faults_on_) return;
      Strike();
      NextFault();
    });
  }

  void WriteBackSometimes() {
    cluster_.world.After(random_.Between(5, 40) * kSecond, [this] {
      if (cluster_.server.up) cluster_.server.WriteBack();
      if (cluster_.world.now() < begin_ + faults_ns_ + kQuietNs) WriteBackSometimes();
    });
  }

  SimNode& AnyNode() {
    auto it = cluster_.nodes.begin();
    std::advance(it, random_.Below(cluster_.nodes.size()));
    return *it->second;
  }
  // A node with something to do, if there is one.
  SimNode& BusyNode() {
    std::vector<SimNode*> busy;
    for (auto& [name, n] : cluster_.nodes) {
      if (!n->tasks.empty()) busy.push_back(n.get());
    }
    return busy.empty() ? AnyNode() : *busy[random_.Below(busy.size())];
  }
  // Undone after a while, or when faults end.
  void For(uint64_t ns, std::function<void()> undo) { cluster_.world.After(ns, std::move(undo)); }

  void Happens(Fault fault) { cluster_.world.faults.Add(fault); }

  void Strike() {
    const uint64_t kinds = 20;
    const uint64_t kind = random_.Below(cluster_.options.clonable ? kinds + 6 : kinds);
    const bool needs_tasks = kind == 2 || kind == 3 || kind == 5 || kind == 7 || kind >= kinds;
    SimNode& node = needs_tasks ? BusyNode() : AnyNode();
    const uint64_t a_while = random_.Between(1, 30) * kSecond;
    if (kind < 8) StrikeProcesses(kind, node, a_while);
    else if (kind < 16) StrikeSurroundings(kind, node, a_while);
    else if (kind < kinds) StrikeCoordinator(kind, node, a_while);
    else if (!node.tasks.empty()) node.CloneTask(random_.Below(node.tasks.size()), AnyNode());
  }

  void StrikeProcesses(uint64_t kind, SimNode& node, uint64_t a_while) {
    switch (kind) {
      case 0:
        Happens(Fault::kPowerLoss);
        PowerCycle(node, a_while);
        break;
      case 1:
        Happens(Fault::kDaemonAndChildrenKilled);
        node.RestartDaemon();
        break;
      case 2:
      case 3:
        if (!node.tasks.empty()) node.KillTask(random_.Below(node.tasks.size()));
        break;
      case 4:
        Happens(Fault::kMachinePaused);
        node.Pause(true);
        For(a_while, [&node] { node.Pause(false); });
        break;
      case 5:
        if (!node.tasks.empty()) node.PauseTask(random_.Below(node.tasks.size()), a_while);
        break;
      case 6:
        Happens(Fault::kDaemonKilled);
        node.LoseDaemon();
        break;
      default:   // a worker that sleeps through the end of its daemon and the claim of its successor
        if (!node.tasks.empty()) Happens(Fault::kSleeperSucceeded);
        for (size_t i = 0; i < node.tasks.size(); ++i) node.PauseTask(i, a_while);
        node.LoseDaemon();
    }
  }

  void StrikeSurroundings(uint64_t kind, SimNode& node, uint64_t a_while) {
    NfsServer& server = cluster_.server;
    switch (kind) {
      case 8:
        Happens(Fault::kCutOff);
        CutOff(node, a_while);
        break;
      case 9:
        OneWay(node, a_while, Fault::kMute, Fault::kDeaf);
        break;
      case 10:
        CrashServer(random_.Between(1, 10) * kSecond);
        break;
      case 11:
        server.full = true;
        cluster_.world.Trace("server", "full");
        For(random_.Between(1, 15) * kSecond, [&server] { server.full = false; });
        break;
      case 12:
        server.read_only = true;
        cluster_.world.Trace("server", "read-only");
        For(random_.Between(1, 5) * kSecond, [&server] { server.read_only = false; });
        break;
      case 13:   // the whole room loses power
        Happens(Fault::kRoomPowerLoss);
        for (auto& [name, n] : cluster_.nodes) PowerCycle(*n, random_.Between(1, 20) * kSecond);
        CrashServer(random_.Between(1, 10) * kSecond);
        break;
      case 14:
        Happens(Fault::kDrain);
        node.draining = !node.draining;
        cluster_.world.Trace(node.name(), node.draining ? "drains" : "drains no more");
        break;
      default: {
        const bool forward = random_.Chance(500);
        Happens(forward ? Fault::kWallClockForward : Fault::kWallClockBack);
        node.options.wall_skew_s += forward ? kDaySeconds : -kDaySeconds;
        cluster_.world.Trace(node.name(), forward ? "its wall clock jumps a day on" : "its wall clock jumps a day back");
      }
    }
  }

  // Whoever coordinates just now is worth aiming at; if nobody does, anybody is struck.
  void StrikeCoordinator(uint64_t kind, SimNode& any, uint64_t a_while) {
    SimNode* coordinator = &any;
    for (auto& [name, n] : cluster_.nodes) {
      if (n->on() && n->coordinates) coordinator = n.get();
    }
    const bool real = coordinator->coordinates;
    if (kind < 18) {
      OneWay(*coordinator, a_while, real ? Fault::kCoordinatorMute : Fault::kMute, real ? Fault::kCoordinatorDeaf : Fault::kDeaf);
    } else if (kind == 18) {
      Happens(real ? Fault::kCoordinatorCutOff : Fault::kCutOff);
      CutOff(*coordinator, a_while);
    } else {
      Happens(Fault::kDaemonKilled);
      coordinator->LoseDaemon();
    }
  }

  void PowerCycle(SimNode& node, uint64_t ns) {
    node.PowerOff();
    For(ns, [&node] { node.PowerOn(); });
  }

  void CutOff(SimNode& node, uint64_t ns) {
    cluster_.world.Trace(node.name(), "cut off from the server");
    node.kernel.cut_off = true;
    For(ns, [&node] { node.kernel.cut_off = false; });
  }

  void OneWay(SimNode& node, uint64_t ns, Fault mute, Fault deaf) {
    const bool out = random_.Chance(500);
    Happens(out ? mute : deaf);
    cluster_.world.Trace(node.name(), out ? "is heard by nobody" : "hears nobody");
    bool& way = out ? node.net_out : node.net_in;
    way = false;
    For(ns, [&way] { way = true; });
  }

  void CrashServer(uint64_t ns) {
    if (!cluster_.server.up) return;
    cluster_.world.Trace("server", "crashes");
    Happens(Fault::kServerCrash);
    cluster_.server.up = false;
    cluster_.server.Crash();
    For(ns, [this] { RestartServer(); });
  }
  void RestartServer() {
    if (cluster_.server.up) return;
    cluster_.world.Trace("server", "is back");
    for (auto& [name, n] : cluster_.nodes) n->kernel.Replay();
    cluster_.server.up = true;
  }

  void EndFaults() {
    if (!faults_on_) return;
    cluster_.world.Trace("world", "faults end");
    faults_on_ = false;
    quiet_since_ = cluster_.world.now();
    RestartServer();
    cluster_.server.full = cluster_.server.read_only = false;
    for (auto& [name, node] : cluster_.nodes) {
      node->kernel.troubles = {};
      node->kernel.cut_off = false;
      node->net_in = node->net_out = true;
      node->draining = false;
      node->broken.clear();
      node->Pause(false);
      node->PowerOn();
    }
    cluster_.net = {};
    Resume();   // the reasons of what gave up are gone
    // Faults may have killed two workers over a sample that is sound, with the budget used up: the job then ends once more, for what was, and
    // says that it may be resumed.
    if (cluster_.options.shape.skip == 0) return;
    cluster_.world.After(kQuietNs / 2, [this] {
      if (cluster_.Done() || cluster_.failed().empty()) return;
      cluster_.world.Trace("world", "resumed: " + cluster_.failed());
      Resume();
    });
  }
  // `jobctl resume`, on daemons that were started again.
  void Resume() {
    cluster_.ForgetFailure();
    for (auto& [name, node] : cluster_.nodes) node->RestartDaemon();
  }

  RunResult Judge() {
    RunResult r;
    r.digest = cluster_.world.digest();
    r.virtual_ns = cluster_.world.now() - begin_;
    r.events = cluster_.world.events();
    r.messages = cluster_.messages;
    r.faults = cluster_.world.faults;
    // A daemon that died at a call is counted when it is started again.
    r.deaths = cluster_.deaths + r.faults.Of(Fault::kDiesAtCall) - r.faults.Of(Fault::kDaemonRestarted);
    r.claims = cluster_.claims;
    r.acks = cluster_.acks().size();
    r.server_crashes = r.faults.Of(Fault::kServerCrash);
    r.clones = cluster_.clones;
    r.forked = cluster_.forked;
    r.async = cluster_.server.kind() == NfsServer::Export::kAsync;
    r.wrong = cluster_.world.violation();
    const bool promised = !r.async || r.server_crashes == 0;   // an async server that crashed may have lost anything, but must not end in a wrong output
    if (r.wrong.empty() && promised) r.wrong = CheckLog(cluster_);
    if (r.wrong.empty() && promised && !cluster_.Done() && BudgetLost(cluster_)) {
      r.budget_lost = true;
      return r;
    }
    if (r.wrong.empty() && promised && !cluster_.Done()) {
      r.wrong = "no progress: the job is not done " + std::to_string(kQuietNs / kSecond) + " s after the last fault" + (cluster_.failed().empty() ? "" : ", it failed: " + cluster_.failed());
    }
    if (r.wrong.empty() && cluster_.Done() && promised) r.wrong = CheckOutput(cluster_, &r.omitted);
    if (r.wrong.empty() && promised) r.wrong = CheckFsck(cluster_, options_.deep);
    return r;
  }

  const RunOptions options_;
  Random random_;
  Cluster cluster_;
  SlotWatch watch_;
  bool faults_on_ = false;
  uint64_t begin_ = 0, faults_ns_ = 0, quiet_since_ = 0;
};

}  // namespace

RunResult RunSeed(const RunOptions& options) {
  SetMutant(options.mutant);
  RunResult result = Scenario(options).Run();
  SetMutant(Mutant::kNone);
  return result;
}

}  // namespace holdfast::sim
