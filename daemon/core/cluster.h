// SPDX-License-Identifier: Apache-2.0
//
// The cluster as the pure part of a daemon sees it: nodes, stages, jobs. Values only; whoever does I/O fills them in.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ledger/base/ids.h"

namespace holdfast {

using TimeNs = uint64_t;                       // the observer's monotonic clock

using LayerRange = std::pair<uint32_t, uint32_t>;   // [first, last)

// The least memory with which a seat can work on layers [first, last): one sample on one thread, beside all of the layers, or beside those that
// are resident at once when they are streamed; and, where that is a device's own, what it takes of the host's besides. All monotone in the range.
class StageMemory {
 public:
  using Function = std::function<uint64_t(uint32_t first_layer, uint32_t last_layer)>;
  StageMemory() = default;
  template <class F>
    requires(std::is_invocable_r_v<uint64_t, F, uint32_t, uint32_t> && !std::is_same_v<F, StageMemory>)
  StageMemory(F resident, Function streamed = nullptr, Function host = nullptr)   // NOLINT: a function is one
      : resident_(std::move(resident)), streamed_(std::move(streamed)), host_(std::move(host)) {}
  explicit operator bool() const { return resident_ != nullptr; }
  bool streams() const { return streamed_ != nullptr; }
  uint64_t operator()(uint32_t first_layer, uint32_t last_layer) const { return resident_(first_layer, last_layer); }
  uint64_t Least(uint32_t first_layer, uint32_t last_layer) const { return (streamed_ ? streamed_ : resident_)(first_layer, last_layer); }
  uint64_t Host(uint32_t first_layer, uint32_t last_layer) const { return host_ ? host_(first_layer, last_layer) : 0; }
  // On a seat that has so much: resident where that fits it alone, else streamed.
  uint64_t Within(uint64_t has, uint32_t first_layer, uint32_t last_layer) const {
    const uint64_t resident = (*this)(first_layer, last_layer);
    return resident <= has ? resident : Least(first_layer, last_layer);
  }

 private:
  Function resident_, streamed_, host_;
};

// What a node says of one of its tasks (Beat::tasks of this job).
struct TaskView {
  StageId stage;
  bool merge = false;
  std::string state;                           // TaskBeat::state
  std::string error_code, error;
  std::string device = {};                     // of the node, where it has several
};

struct DeviceView {                            // one of several devices of a node
  std::string name, numerics;                  // "cuda:1"
  uint64_t memory_bytes = 0, memory_elsewhere = 0, speed = 1;   // as NodeView's, of this device
  uint64_t host_bytes = 0;
};

struct NodeView {                              // from a beat
  std::string name;
  Nonce incarnation;
  uint64_t count = 0;                          // Beat::count: a rise is a sign of life, the first one seen is not
  bool draining = false, paused = false;
  bool storage_stalled = false;                // it has been waiting for the shared directory for long: it speaks, but cannot commit
  uint64_t memory_bytes = 0;                   // what it may plan with, all jobs together
  uint64_t memory_elsewhere = 0;               // of that, planned by tasks of other jobs
  uint64_t host_bytes = 0;                     // what it may take of the host's beside a device's own; 0: memory_bytes is the host's
  uint64_t speed = 1;                          // relative; never 0
  std::string version, numerics;               // "0.2.0", "cpu/bf16/avx512_bf16/libtorch-1.13.1"
  std::vector<TaskView> tasks;                 // of this job only
  std::vector<DeviceView> devices = {};        // of a node that has several; empty: one, which the fields above describe
};

// A seat is a place for a stage: a node, or one device of a node that has several. Everything that is placed is placed on seats; everything that lives,
// claims and is lost is a node. The seat of a node with one device has the node's name, others are called "node/device".
std::vector<NodeView> SeatsOf(const NodeView& node);   // each with the memory, speed and numerics of its device, and without `devices`
uint64_t RoomOf(const NodeView& seat);                 // what it has for this job: its memory less what other jobs planned
std::string SeatName(const std::string& node, const std::string& device);
std::string NodeOfSeat(const std::string& seat);
std::string DeviceOfSeat(const std::string& seat);     // "" = the node's only one

// StageMemory by the seat, whose processor and numerics decide; or the same for all.
class SeatMemory {
 public:
  using Function = std::function<StageMemory(const NodeView& seat)>;
  SeatMemory() = default;
  SeatMemory(StageMemory of_all) : of_([of_all = std::move(of_all)](const NodeView&) { return of_all; }) {}   // NOLINT: of all is one
  explicit SeatMemory(Function of) : of_(std::move(of)) {}
  explicit operator bool() const { return of_ != nullptr; }
  StageMemory Of(const NodeView& seat) const { return of_(seat); }
  // Whether these layers fit into `room` of its memory, all resident, or streamed; and besides into what its device may take of the host's.
  bool Fits(const NodeView& seat, const LayerRange& layers, uint64_t room) const;
  bool FitsStreamed(const NodeView& seat, const LayerRange& layers, uint64_t room) const;

 private:
  Function of_;
};

struct BlameView {                             // a sample that its stage can do nothing without, and that is not left out yet
  uint32_t sample = 0;
  std::string why;
};

struct StageView {                             // from the fold
  StageId stage;
  uint32_t first_layer = 0, last_layer = 0;
  uint64_t samples_done = 0, samples_total = 0;
  bool sealed = false;
  uint32_t tail = 0;                           // next slot of its stream: a rise is a sign of life of its owner
  std::string owner;                           // node of the current claim; "" = never claimed or released
  std::optional<BlameView> blame = {};
};

struct JobView {
  uint32_t layers = 0;
  uint32_t plan = 0;                           // number
  std::vector<StageView> stages;               // of the latest plan, by layer
  bool stages_given = false;                   // --shard-layers: the cut is the user's, kept as long as its stages fit somewhere
  std::vector<std::string> on;                 // --on: the node of each stage that the user asked for; empty: any
  bool reproducible = false;
  std::string numerics;                        // of the first claim of a stage; "" = nobody has worked on this job yet
  bool done = false;                           // D is there
  uint32_t samples = 0;                        // of the calibration set
  std::vector<uint32_t> omitted;               // of those, the ones that are left out
  uint32_t skips_left = 0;                     // so many more may be
  SeatMemory memory;
};

// libtorch's part of a numerics class: "libtorch-1.13.1"; "" when it names none.
std::string TorchOf(const std::string& numerics);

}  // namespace holdfast
