// SPDX-License-Identifier: Apache-2.0
//
// Virtual time and the processes that live in it. One event happens at a time, on one thread; ties go by order of making, so that one
// seed gives one history. A process is a fiber: it is killed by making every call it makes from then on fail, which unwinds production code
// through its own error handling and can touch nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "tests/sim/faults.h"
#include "tests/sim/fiber.h"
#include "tests/sim/random.h"

namespace holdfast::sim {

inline constexpr uint64_t kMs = 1'000'000, kSecond = 1'000'000'000;

class World;

class Process : public std::enable_shared_from_this<Process> {
 public:
  Process(World& world, std::string name, uint64_t seed);

  // ---- from inside ----
  // Lets `ns` of virtual time pass. Returns at once when killed. Longer while paused.
  void Sleep(uint64_t ns);
  bool dead() const { return dead_; }
  Random& random() { return random_; }            // of this process alone: what it draws disturbs nobody
  uint64_t seed() const { return seed_; }
  static Process* Current();

  // ---- from outside ----
  void Kill();                                    // and runs it to its end, if it is not the one running
  void Pause(bool on) { paused_ = on; if (!on) Wake(); }
  bool paused() const { return paused_; }
  bool finished() const { return finished_; }
  const std::string& name() const { return name_; }
  World& world() { return world_; }

 private:
  friend class World;
  void Wake();                                    // if it was due while it was paused
  void Resume();

  World& world_;
  std::string name_;
  uint64_t seed_;
  Random random_;
  std::unique_ptr<Fiber> fiber_;
  uint64_t sleep_ = 0;                            // number of the current sleep: older alarms are void
  bool dead_ = false, paused_ = false, due_ = false, finished_ = false;
};

class World {
 public:
  explicit World(uint64_t seed, bool trace = false);
  ~World();                                       // kills what still lives

  uint64_t now() const { return now_; }
  Random& random() { return random_; }            // of the faults
  void At(uint64_t when, std::function<void()> what);
  void After(uint64_t ns, std::function<void()> what) { At(now_ + ns, std::move(what)); }
  // Starts a process now. `on_end` runs in the world, not in the process, and also when it was killed.
  // `seed` of what it draws; 0: a new one.
  std::shared_ptr<Process> Spawn(const std::string& name, std::function<void(Process&)> body, std::function<void()> on_end, uint64_t seed = 0);
  bool Step();                                    // the next event; false: none is left
  // The first one counts; nothing more happens behind it.
  void Violation(const std::string& what);
  const std::string& violation() const { return violation_; }

  void Trace(const std::string& who, const std::string& what);   // also folds it into digest()
  bool tracing() const { return trace_; }
  uint64_t digest() const { return digest_; }     // of everything traced: equal histories, equal digests
  uint64_t events() const { return made_; }
  FaultCounts faults;                             // that happened

 private:
  struct Event {
    uint64_t when, number;
    std::function<void()> what;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const { return a.when != b.when ? a.when > b.when : a.number > b.number; }
  };
  friend class Process;

  uint64_t now_ = 1000 * kSecond, made_ = 0, digest_ = 0;
  Random random_;
  bool trace_;
  std::priority_queue<Event, std::vector<Event>, Later> events_;
  std::vector<std::weak_ptr<Process>> processes_;
  std::string violation_;
};

}  // namespace holdfast::sim
