// SPDX-License-Identifier: Apache-2.0
//
// The inside of a StageWorker, for its two sources: stage_worker.cc (its life: claim, source, eviction, seal) and stage_calibration.cc (the samples'
// way through its layers, a group at a time).
#pragma once

#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "calib/model/decoder.h"
#include "calib/model/memory_plan.h"
#include "calib/runner/runner.h"
#include "daemon/core/stage_scheduler.h"
#include "daemon/transport/cut_edge.h"
#include "daemon/worker/committer.h"
#include "daemon/worker/compute_pool.h"
#include "daemon/worker/cut_writer.h"
#include "daemon/worker/poison.h"
#include "daemon/worker/stage_worker.h"
#include "daemon/worker/todo.h"
#include "daemon/worker/unit_evictions.h"
#include "export/format/safetensors.h"
#include "export/shard/evict.h"

namespace holdfast {

// Hidden states between two groups, in the host's memory: what a sample goes on from without anything being read.
struct HeldCut {
  uint64_t tokens = 0;
  Digest digest;
  std::shared_ptr<const Bytes> hidden;
};
struct HeldCuts {
  uint32_t before = 0;                         // this layer
  std::map<uint32_t, HeldCut> of;              // by sample
};

// The weights of one group of layers, ready to compute with.
struct LoadedGroup {
  uint32_t first_layer = 0, last_layer = 0;
  std::unique_ptr<LayerRangeRunner> runner;    // null: nothing is loaded
  std::vector<LoadedDigest> digests;           // of what was read
  bool Is(const Todo& todo) const { return runner != nullptr && first_layer == todo.first_layer && last_layer == todo.last_layer; }
};

struct StageWorker::Impl {
  FileSystem& fs;
  const Clock& clock;
  const WorkerArgs args;
  const StopFlag& stop;

  // The committer's alone while one runs; between groups this thread's.
  RunState state;
  std::unique_ptr<StreamWriter> writer;

  StagePlan stage;
  Plan plan;                                   // the run's as of the start
  std::unique_ptr<SourceModel> source;
  DecoderSpec spec;
  std::shared_ptr<DeviceSession> session;      // of all groups
  LoadedGroup group;                           // kept for eviction if it holds weights that need not be read again
  Incarnation self;

  Context context;
  std::unique_ptr<Socket> control;
  SocketSecurity security;                     // of the data edges
  std::unique_ptr<Socket> cut_router;          // where cuts arrive; bound before the claim, which says where. Null for the first stage
  WorkerReport report;
  uint64_t report_ns = 0;
  bool paused = false;                         // by the supervisor: no new samples for now
  std::vector<uint32_t> evicted_without;       // the samples that were left out when units were last evicted
  bool load_begun = false;                     // this life's B record of it is there
  uint32_t cuts_kept_from = 0;                 // cuts inside the stage below this layer were consumed and are gone
  HeldCuts held, held_next;                    // what the group at hand comes from, and what it leaves
  uint64_t kept_ns = 0;                        // when cuts inside the stage were last known to be in packs; see KeepsCuts
  uint64_t group_ns = 0;                       // how long the last group took

  // A sample on its way: computed on one thread, its cut hashed and written into packs on another.
  struct Computed {
    uint32_t sample = 0;
    uint64_t held_bytes = 0;                   // of the edge's memory, to release
    Result<ComputedSample> result = Error{};
  };
  const int event_fd;
  std::mutex results_mutex;
  std::vector<Computed> computed;              // guarded by results_mutex
  std::vector<Result<ComputedSample>> written; // guarded by results_mutex

  // What goes on beside the group that is computed: groups before it are evicted and the next one is loaded, which waits for the memory of the one
  // that it takes the place of. They wait in their destructors, so they stand behind everything that they use.
  std::unique_ptr<UnitEvictions> evictions;    // null until the source is open
  std::shared_future<void> evicting;           // the last group whose weights go with it
  std::future<Result<LoadedGroup>> ahead;

  Impl(FileSystem& f, const Clock& c, WorkerArgs a, const StopFlag& s);
  ~Impl();

  // ---- its life: stage_worker.cc ----
  bool Stopping() const { return stop.raised.load(); }
  void Wake() const;
  void ClearWake() const;
  void Report(bool force = false);
  void EnterPhase(const char* phase);
  void HearSupervisor();
  Status Run();
  Status Open();
  Status OpenEdge();
  Status CheckSource();
  Status CheckFile(const SourceFile& pinned);
  Status Begin(const char* phase, uint64_t planned_bytes);
  Status Work();
  Status AwaitOmission(const Blame& blame);
  Status Evict();
  // What evicting these units takes out of the fold, so that it can go on without it.
  struct EvictInputs {
    std::vector<uint32_t> units;
    std::map<uint32_t, std::vector<float>> amax;
    std::vector<uint32_t> omitted;
    EvictOptions options;
  };
  Result<EvictInputs> InputsOf(std::vector<uint32_t> units, const LoadedGroup& from, uint32_t threads);
  Result<LayerRecord> EvictOne(const EvictInputs& in, uint32_t unit);
  Status EvictMissing(const std::vector<uint32_t>& missing, const LoadedGroup& from);
  Status CommitUnit(const LayerRecord& unit);
  uint32_t EvictedAtOnce() const;
  enum class Sealed : uint8_t { kNo, kYes };
  Result<Sealed> Seal();

  // ---- samples through layers: stage_calibration.cc ----
  Grouping Groups() const { return GroupLayers(args.size.layers, stage.last_layer - stage.first_layer, GroupsAtOnceMax(ProcessorOf(args.device))); }
  bool Streams() const { return Groups().layers < stage.last_layer - stage.first_layer; }
  Status Calibrate();
  Status Enter(const Todo& todo);
  Result<LoadedGroup> Load(uint32_t first_layer, uint32_t last_layer, std::function<std::optional<Digest>(const std::string&)> expected) const;
  Status NoteDigests();
  Status LoadNow(const Todo& todo);
  enum class Await : uint8_t { kNextGroup, kEverything };
  Status Join(Await what);
  void StartAhead(LoadedGroup finished, const Todo& todo);
  std::optional<EvictInputs> Evictable(const LoadedGroup& finished);
  Status CommitEvicted();
  Status DropConsumedCuts();
  bool KeepsCuts(const Todo& todo) const;
  using Input = std::variant<std::monostate, Cut, HeldCut>;   // monostate: tokens, or what came over the edge
  Result<ComputedSample> Compute(const StartSample& start, const Input& input);
  Result<ComputedSample> WriteCut(ComputedSample done, bool kept, std::optional<Codec> as, CutWriter* writer) const;
  void Written(Result<ComputedSample> done);
  Status Loop(const Todo& todo, const Caution& caution, bool kept);
  Status Retarget(const Incarnation& consumer, uint64_t cut_bytes, std::unique_ptr<CutSender>* sender);
};

}  // namespace holdfast
