// SPDX-License-Identifier: Apache-2.0
#include "daemon/holdfastd/task_runner.h"

#include <algorithm>

#include "daemon/core/placement.h"
#include "daemon/node/process.h"
#include "ledger/base/units.h"

namespace holdfast {
namespace {

constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr uint64_t kFencedRetryNs = 3 * kSecondNs, kSpaceRetryNs = 30 * kSecondNs, kSourceRetryNs = 30 * kSecondNs;
constexpr uint64_t kMergeBytes = 512u << 20;          // what a merge plans with, see export/merge/merge.h

std::string What(const StagePlan& plan, bool merge) {
  if (merge) return "merge";
  return "stage " + std::to_string(plan.stage.value) + " (layers " + std::to_string(plan.first_layer) + "-" + std::to_string(plan.last_layer - 1) + ")";
}

// Of the claim that follows on a life that ended without a release. One that the user ended, by a retry, is a resume.
const char* ReasonAfter(TaskState ended) {
  switch (ended) {
    case TaskState::kNoSpace: return "no space";
    case TaskState::kFenced:
    case TaskState::kStopped: return "stopped";
    default: return "resume";
  }
}

}  // namespace

// A task's state as the others know it: running ones say so themselves.
void TaskRunner::Fill(Beat* beat) const {
  beat->tasks = beats_;
  for (TaskBeat& t : beat->tasks) {
    for (const Task* task : supervisor_.tasks()) {
      const auto id = job_ids_.find(task->spec.key);
      const bool same = id != job_ids_.end() && id->second == t.job && (task->spec.key.merge ? kMergeTask : task->spec.key.stage.value) == t.stage;
      if (!same) continue;
      const StageProgress& v = task->view;
      t.phase = v.phase;
      t.samples_done = v.samples_done;
      t.samples_total = v.samples_total;
      t.units_done = v.units_done;
      t.units_total = v.units_total;
      t.bytes_read = v.bytes_read;
      t.bytes_written = v.bytes_written;
      t.bytes_total = v.bytes_total;
      t.rss_bytes = v.rss_bytes;
      t.rss_peak_bytes = v.rss_peak_bytes;
      t.planned_bytes = task->spec.planned_bytes;
      t.cuts_received = v.cuts_received;
      t.cuts_from_packs = v.cuts_from_packs;
      t.chunks_dropped = v.chunks_dropped;
      t.window = v.size.window;
      t.threads = v.size.threads;
      t.restarts = v.restarts;
      t.out_of_memory = v.out_of_memory;
      t.last_death = v.last_death;
      t.pid = v.pid;
      if (task->state == TaskState::kRunning) t.state = task->stopping ? "stopping" : paused_ && !task->spec.key.merge ? "paused" : "running";
      if (task->state == TaskState::kDone) t.state = "done";
    }
  }
  for (const Seat& seat : options_.seats) beat->memory_planned += PlannedOn(seat);
  beat->memory_available = MemAvailableBytes();
  beat->pressure = MemoryPressure();
  beat->paused = paused_;
}

uint64_t TaskRunner::PlannedOn(const Seat& seat) const {
  uint64_t sum = 0;
  for (const Task* t : supervisor_.tasks()) sum += t->view.pid != 0 && t->spec.device == seat.device.name ? t->spec.planned_bytes : 0;
  return sum;
}

// "" is the only one that there is.
const TaskRunner::Seat* TaskRunner::FindSeat(const std::string& device) const {
  if (device.empty()) return options_.seats.size() == 1 ? &options_.seats.front() : nullptr;
  const auto it = std::find_if(options_.seats.begin(), options_.seats.end(), [&](const Seat& s) { return s.device.name == device; });
  return it == options_.seats.end() || options_.seats.size() == 1 ? nullptr : &*it;
}

void TaskRunner::Watch() {
  if (clock_.MonotonicNs() - watched_ns_ < kSecondNs) return;
  watched_ns_ = clock_.MonotonicNs();
  const uint64_t available = MemAvailableBytes();
  const bool pause = gate_.Step(available, MemTotalBytes(), MemoryPressure(), watched_ns_);
  if (pause != paused_) {
    log_.Say(pause ? "memory is nearly used up (" + FormatSize(available) + " available): no new samples until that is better"
                   : "memory is available again: going on");
  }
  paused_ = pause;
  supervisor_.Pause(pause);
}

std::string TaskRunner::Objection(const Job& job) const {
  const RunState& state = job.driver->state();
  const std::string config = JoinPath(state.job().source, "config.json");
  const auto there = fs_.Exists(config);
  if (!there.ok() || !*there) {
    return "source " + state.job().source + " is not there on node " + options_.node + "; mount or copy it to that path, then `jobctl resume " + job.id + "`";
  }
  return "";
}

std::vector<TaskRunner::Wish> TaskRunner::WishesOf(const Job& job) {
  std::vector<Wish> wishes;
  const std::string& dir = job.driver->state().layout().root();
  for (const StagePlan& plan : job.driver->StagesOf(options_.node)) {
    Wish w{&job, {dir, false, plan.stage}, plan, UINT64_MAX, FindSeat(job.driver->DeviceOf(plan.stage))};
    const auto memory = w.seat ? job.driver->LeastMemory(w.seat->device) : Result<StageMemory>(Error{});
    if (memory.ok()) w.minimum_bytes = memory->Within(w.seat->memory_bytes, plan.first_layer, plan.last_layer);
    wishes.push_back(std::move(w));
  }
  if (job.driver->MergeOf(options_.node)) wishes.push_back({&job, {dir, true, {}}, {}, 0, &options_.seats.front()});   // beside whatever runs: it is small
  return wishes;
}

// What is not wanted any more is asked to stop; what has stopped is forgotten.
void TaskRunner::StopOthers(const std::vector<Wish>& wanted) {
  std::vector<TaskKey> gone;
  for (const Task* t : supervisor_.tasks()) {
    const bool keep = std::any_of(wanted.begin(), wanted.end(), [&](const Wish& w) { return w.key == t->spec.key && w.seat->device.name == t->spec.device; });
    if (keep) continue;
    if (t->view.pid == 0) {
      if (t->state == TaskState::kFenced && t->error) {   // it was given away while this node was out of reach
        log_.Say(job_ids_[t->spec.key], What(t->spec.plan, t->spec.key.merge) + ": fenced: " + t->error->message + "; this node offers itself for new work");
      }
      ended_[t->spec.key] = ReasonAfter(t->state);
      gone.push_back(t->spec.key);
    } else if (!t->stopping && t->view.phase != "seal" && t->view.phase != "done") {   // those end by themselves, and may be why it is not wanted
      log_.Say(job_ids_[t->spec.key], What(t->spec.plan, t->spec.key.merge) + " is not this node's any more (or has to wait): draining its worker");
      supervisor_.Stop(t->spec.key);
    }
  }
  for (const TaskKey& key : gone) {
    supervisor_.Forget(key);
    job_ids_.erase(key);
  }
}

// Tasks that ended otherwise than well: what is said of them, and when they are tried again.
void TaskRunner::Learn(const std::vector<Wish>& wanted) {
  const uint64_t now = clock_.MonotonicNs();
  for (const Wish& w : wanted) {
    const RunState& state = w.job->driver->state();
    const uint32_t assignment = state.assignment() ? state.assignment()->number : 0;
    if (const auto it = setbacks_.find(w.key); it != setbacks_.end()) {
      const Setback& s = it->second;
      const bool fresh_word = s.until_ns == UINT64_MAX && (s.assignment != assignment || s.retries != w.job->retries);
      if (now >= s.until_ns || fresh_word) setbacks_.erase(it);
      continue;
    }
    const Task* t = supervisor_.Find(w.key);
    if (t == nullptr || t->state == TaskState::kRunning || t->state == TaskState::kDone || t->state == TaskState::kStopped) continue;
    if (w.seat == nullptr || t->spec.device != w.seat->device.name) continue;   // on the device that it was taken from
    Setback s{.state = "failed", .error_code = t->error ? ErrorCodeName(t->error->code) : "", .error = t->error ? t->error->message : "",
              .until_ns = UINT64_MAX, .assignment = assignment, .retries = w.job->retries};
    if (t->state == TaskState::kFenced) s.state = "fenced", s.until_ns = now + kFencedRetryNs;
    if (t->state == TaskState::kNoSpace) s.state = "paused", s.until_ns = now + kSpaceRetryNs;
    log_.Say(w.job->id, What(w.plan, w.key.merge) + ": " + s.error +
                            (t->state == TaskState::kFenced ? "; this node offers itself for new work"
                             : t->state == TaskState::kNoSpace ? "; trying again in 30 s: make room" : ""));
    setbacks_.emplace(w.key, std::move(s));
    ended_[w.key] = ReasonAfter(t->state);
    supervisor_.Forget(w.key);
  }
}

// What lies in the host's memory beside a GPU's: an equal part of what is free there now. Of a GPU that has none of its own it lies in the same.
WorkerSize TaskRunner::SizeFor(const MemoryPlan& memory, const Seat& seat, uint32_t samples, uint64_t room, Neighbours neighbours) const {
  const bool own = seat.device.memory_bytes > 0;
  const uint64_t host = HostShare(MemAvailableBytes(), options_.seats.size());
  const uint32_t layers = neighbours == Neighbours::kNone ? memory.layers_wanted : memory.layers;
  return LargestThatFits(PreferredSize(options_.threads, layers, samples), memory.layers, neighbours, [&](const WorkerSize& s) {
    const uint64_t total = memory.Total(s.threads, s.window, s.layers, s.cuts), beside = memory.Host(s.threads, s.window, s.cuts);
    return own ? total <= room && beside <= host : total + beside <= room;
  });
}

// `reserve`: bytes that other chosen tasks, not yet running, need at their smallest.
void TaskRunner::Launch(const Wish& w, uint64_t reserve) {
  const RunState& state = w.job->driver->state();
  TaskSpec spec;
  spec.key = w.key;
  spec.plan = w.plan;
  const Device& device = w.seat->device;
  spec.device = device.name;
  spec.samples_total = state.samples_in();
  spec.omitted = state.OmittedSamples();
  spec.log = log_.PathOf(w.job->id);
  spec.reason = "start";
  const uint64_t planned = PlannedOn(*w.seat), room = w.seat->memory_bytes - std::min(w.seat->memory_bytes, planned);
  if (w.key.merge) {
    spec.size = {.window = 1, .threads = options_.threads};
    spec.planned_bytes = kMergeBytes;
  } else {
    const auto memory = w.job->driver->Memory(w.plan.first_layer, w.plan.last_layer, device);
    if (!memory.ok() || w.minimum_bytes > room) return;   // its neighbours are being made smaller, see Reconcile
    spec.size = SizeFor(*memory, *w.seat, state.samples_in(), room - std::min(room, reserve), state.plan().stages.size() > 1 ? Neighbours::kSome : Neighbours::kNone);
    spec.planned_bytes = memory->Total(spec.size.threads, spec.size.window, spec.size.layers, spec.size.cuts);
    if (device.memory_bytes == 0) spec.planned_bytes += memory->Host(spec.size.threads, spec.size.window, spec.size.cuts);
    spec.samples_done = w.job->driver->SamplesDone(w.plan);
    const auto known = state.stages().find(w.plan.stage);
    if (known != state.stages().end() && !known->second.claims.empty()) {
      const bool mine = known->second.claims.back().node == options_.node, open = !known->second.stream.released;
      const auto ended = ended_.find(w.key);
      spec.reason = mine && open ? ended == ended_.end() ? "holdfastd died" : ended->second : mine || !state.assignment() ? "resume" : state.assignment()->why;
    }
  }
  if (const Status started = supervisor_.Start(spec); !started.ok()) return log_.Say(w.job->id, started.error().message);
  job_ids_[w.key] = w.job->id;
  const uint32_t layers = w.plan.last_layer - w.plan.first_layer;
  const std::string streamed = w.key.merge || spec.size.layers >= layers ? "" : "streamed " + std::to_string(GroupLayers(spec.size.layers, layers, GroupsAtOnceMax(ProcessorOf(spec.device))).layers) + " at a time, ";
  const std::string on = w.key.merge || options_.seats.size() == 1 ? "" : " on " + device.name;
  log_.Say(w.job->id, What(w.plan, w.key.merge) + ": started" + on + " (" + streamed + std::to_string(spec.size.threads) + " threads, " + std::to_string(spec.size.window) +
                          " samples in flight, plans with " + FormatSize(spec.planned_bytes) + ")");
}

void TaskRunner::Reconcile(const std::vector<Job>& jobs, bool intake) {
  std::vector<Wish> wishes, chosen;
  for (const Job& job : jobs) {
    for (Wish& w : WishesOf(job)) wishes.push_back(std::move(w));
  }
  Learn(wishes);
  beats_.clear();
  std::map<const Seat*, uint64_t> room;
  for (const Seat& seat : options_.seats) room[&seat] = seat.memory_bytes;
  for (const Job& job : jobs) {
    std::map<const Seat*, std::vector<LocalStage>> local;
    std::string objection;
    for (const Wish& w : wishes) {
      if (w.job->id != job.id || setbacks_.contains(w.key) || w.seat == nullptr) continue;
      if (!w.key.merge && objection.empty() && supervisor_.Find(w.key) == nullptr) objection = Objection(job);
      if (!objection.empty()) {
        log_.Say(job.id, objection);
        setbacks_[w.key] = {"refused", "not_found", objection, clock_.MonotonicNs() + kSourceRetryNs, 0, 0};
      } else if (w.key.merge) {
        chosen.push_back(w);
      } else {
        local[w.seat].push_back({w.plan.stage, w.plan.first_layer, w.minimum_bytes});
      }
    }
    for (const auto& [seat, stages] : local) {
      const std::vector<StageId> now = ChooseRunning(stages, room[seat]);
      for (const Wish& w : wishes) {
        if (w.job->id != job.id || w.key.merge || std::find(now.begin(), now.end(), w.plan.stage) == now.end()) continue;
        room[seat] -= std::min(room[seat], w.minimum_bytes);
        chosen.push_back(w);
      }
    }
  }
  if (!intake) chosen.clear();
  for (const Wish& w : wishes) beats_.push_back(BeatOf(w));
  StopOthers(chosen);
  if (paused_) return;
  for (const Wish& w : chosen) {
    const Task* t = supervisor_.Find(w.key);
    const bool done = t != nullptr && t->state == TaskState::kDone && t->spec.omitted == w.job->driver->state().OmittedSamples();
    if (t != nullptr && (t->view.pid != 0 || done)) continue;
    uint64_t reserve = 0;
    for (const Wish& other : chosen) {
      const Task* o = supervisor_.Find(other.key);
      if (other.key != w.key && other.seat == w.seat && (o == nullptr || o->state == TaskState::kStopped)) reserve += other.minimum_bytes;
    }
    Launch(w, reserve);
    t = supervisor_.Find(w.key);
    if (t == nullptr || t->view.pid == 0) ShrinkNeighbour(*w.seat);
  }
}

// All chosen tasks fit at their smallest, so if one finds no room a neighbour is larger than it has to be: that one starts anew, smaller.
void TaskRunner::ShrinkNeighbour(const Seat& seat) {
  const Task* largest = nullptr;
  for (const Task* t : supervisor_.tasks()) {
    if (t->spec.device != seat.device.name) continue;
    if (t->stopping) return;   // under way already
    const bool stage = t->view.pid != 0 && !t->spec.key.merge && (t->view.size.window > 1 || t->view.size.threads > 1);
    if (stage && (largest == nullptr || t->spec.planned_bytes > largest->spec.planned_bytes)) largest = t;
  }
  if (largest != nullptr) supervisor_.Stop(largest->spec.key);
}

TaskBeat TaskRunner::BeatOf(const Wish& w) const {
  TaskBeat t;
  t.job = w.job->id;
  t.stage = w.key.merge ? kMergeTask : w.plan.stage.value;
  t.state = "waiting";
  t.samples_total = w.job->driver->state().samples_in();
  if (options_.seats.size() > 1 && !w.key.merge) t.device = w.seat ? w.seat->device.name : w.job->driver->DeviceOf(w.plan.stage);
  if (const auto it = setbacks_.find(w.key); it != setbacks_.end()) {
    t.state = it->second.state;
    t.error_code = it->second.error_code;
    t.error = it->second.error;
  }
  return t;
}

}  // namespace holdfast
