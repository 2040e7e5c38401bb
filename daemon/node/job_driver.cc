// SPDX-License-Identifier: Apache-2.0
#include "daemon/node/job_driver.h"

#include <algorithm>
#include <deque>
#include <map>

#include "ledger/base/fail_point.h"

namespace holdfast {
namespace {

constexpr uint64_t kRenewNs = 60'000'000'000;      // the job stream shows life this often
constexpr uint64_t kConfigFileMax = 64u << 20;

bool Sealed(const RunState& state, StageId stage) {
  const auto it = state.stages().find(stage);
  return it != state.stages().end() && it->second.seal.has_value();
}

}  // namespace

std::vector<StagePlan> NumberStages(const RunState* state, const std::vector<LayerRange>& ranges) {
  std::map<LayerRange, uint16_t> known;
  uint16_t next = 0;
  if (state != nullptr) {
    for (const auto& [number, plan] : state->plans()) {
      for (const StagePlan& s : plan.stages) {
        known.emplace(LayerRange(s.first_layer, s.last_layer), s.stage.value);
        next = std::max<uint16_t>(next, s.stage.value + 1);
      }
    }
  }
  std::vector<StagePlan> stages;
  for (const LayerRange& range : ranges) {
    const auto it = known.find(range);
    stages.push_back({StageId(it != known.end() ? it->second : next++), range.first, range.second});
  }
  return stages;
}

namespace {

enum class HostMemory : uint8_t { kSame, kApart };   // whether the device has its own beside it

StageMemory LeastMemoryOn(const DecoderSpec& decoder, const Plan& plan, uint32_t seq_len, MatmulDtype matmul, Processor processor, HostMemory host) {
  const auto of = [&decoder, &plan, seq_len, matmul, processor](uint32_t first, uint32_t last) { return PlanMemory(decoder, plan, first, last, seq_len, matmul, processor); };
  const auto beside = [of](uint32_t first, uint32_t last) { return of(first, last).Host(1, 1, 0); };
  const auto total = [of, host](uint32_t first, uint32_t last, uint32_t resident) {
    const MemoryPlan m = of(first, last);
    return m.Total(1, 1, resident) + (host == HostMemory::kSame ? m.Host(1, 1, 0) : 0);
  };
  const auto resident = [total](uint32_t first, uint32_t last) { return total(first, last, last - first); };
  const auto streamed = [total](uint32_t first, uint32_t last) { return total(first, last, 1); };
  return host == HostMemory::kSame ? StageMemory(resident, streamed) : StageMemory(resident, streamed, beside);
}

}  // namespace

SeatMemory LeastMemoryOf(const DecoderSpec& decoder, const Plan& plan, uint32_t seq_len) {
  return SeatMemory([&decoder, &plan, seq_len](const NodeView& seat) {
    return LeastMemoryOn(decoder, plan, seq_len, MatmulOf(seat.numerics), ProcessorOf(seat.numerics), seat.host_bytes > 0 ? HostMemory::kApart : HostMemory::kSame);
  });
}

JobDriver::JobDriver(FileSystem& fs, const Clock& clock, RunLayout layout, Options options)
    : fs_(fs), clock_(clock), options_(std::move(options)), state_(fs, std::move(layout)) {}

// The job stream alone says whether it is.
bool JobDriver::OwnIsEnough() const {
  const auto& assignment = state_.assignment();
  if (coordinates() || !assignment || assignment->merge_node == options_.self.node) return false;
  return std::none_of(assignment->stages.begin(), assignment->stages.end(), [](const Assignment::Entry& e) { return e.node.empty(); });
}

// Also what it has sealed since: a seal may be voided.
std::vector<LayerRange> JobDriver::Given(const std::string& node) const {
  std::vector<LayerRange> given;
  for (const StagePlan& s : state_.plan().stages) {
    const auto named = [&](const Assignment::Entry& e) { return e.stage == s.stage && e.node == node; };
    if (std::any_of(state_.assignment()->stages.begin(), state_.assignment()->stages.end(), named)) given.emplace_back(s.first_layer, s.last_layer);
  }
  return given;
}

Status JobDriver::Read(Scope scope) {
  whole_ = false;
  if (scope == Scope::kOwn) {
    if (!state_.has_plan()) HOLDFAST_TRY(state_.RefreshLayers({}));
    while (state_.has_plan() && OwnIsEnough()) {
      const std::vector<LayerRange> given = Given(options_.self.node);
      HOLDFAST_TRY(state_.RefreshLayers(given));
      if (OwnIsEnough() && Given(options_.self.node) == given) return OkStatus();   // else it was given other stages while it read
    }
  }
  HOLDFAST_TRY(state_.Refresh());
  whole_ = true;
  return OkStatus();
}

Result<bool> JobDriver::Refresh(Scope scope) {
  HOLDFAST_TRY(Read(scope));
  uint64_t tails = state_.job_stream().next_seq + state_.merge_stream().next_seq;
  for (const auto& [id, stage] : state_.stages()) tails += stage.stream.next_seq;
  const bool news = tails != tails_;
  tails_ = tails;
  view_stale_ = view_stale_ || news;
  return news;
}

bool JobDriver::AllSealed() const {
  const auto& stages = state_.plan().stages;
  return std::all_of(stages.begin(), stages.end(), [this](const StagePlan& s) { return Sealed(state_, s.stage); });
}

bool JobDriver::Blocked() const {
  const auto& assignment = state_.assignment();
  if (!assignment || AllSealed()) return false;
  return std::all_of(assignment->stages.begin(), assignment->stages.end(),
                     [this](const Assignment::Entry& e) { return e.node.empty() || Sealed(state_, e.stage); });
}

std::vector<StagePlan> JobDriver::StagesOf(const std::string& node) const {
  std::vector<StagePlan> mine;
  const auto& assignment = state_.assignment();
  if (!assignment || assignment->plan != state_.plan().number) return mine;
  for (const StagePlan& s : state_.plan().stages) {
    const auto named = [&](const Assignment::Entry& e) { return e.stage == s.stage && e.node == node; };
    const bool given = std::any_of(assignment->stages.begin(), assignment->stages.end(), named);
    if (given && !Sealed(state_, s.stage)) mine.push_back(s);
  }
  return mine;
}

std::string JobDriver::DeviceOf(StageId stage) const {
  for (const Assignment::Entry& e : state_.assignment() ? state_.assignment()->stages : std::vector<Assignment::Entry>{}) {
    if (e.stage == stage) return e.device;
  }
  return "";
}

bool JobDriver::MergeOf(const std::string& node) const {
  return state_.assignment() && state_.assignment()->merge_node == node && AllSealed() && !Done();
}

uint64_t JobDriver::SamplesDone(const StagePlan& stage) const {
  return state_.SamplesThrough(stage.first_layer, stage.last_layer);
}

Status JobDriver::LoadDecoder() {
  if (decoder_) return OkStatus();
  const JobSpec& job = state_.job();
  const std::string path = JoinPath(job.source, "config.json");
  std::string text = job.config;
  if (text.empty()) {
    HOLDFAST_ASSIGN(const Bytes bytes, fs_.ReadFile(path, kConfigFileMax));
    text = std::string(AsText(bytes));
  }
  HOLDFAST_ASSIGN(const Json json, ParseJson(text, path));
  HOLDFAST_ASSIGN(decoder_, ParseDecoder(json, path));
  return OkStatus();
}

Result<MemoryPlan> JobDriver::Memory(uint32_t first_layer, uint32_t last_layer, const Device& device) {
  HOLDFAST_TRY(LoadDecoder());
  return PlanMemory(*decoder_, state_.plan(), first_layer, last_layer, state_.job().seq_len, device.matmul, ProcessorOf(device.name));
}

Result<StageMemory> JobDriver::LeastMemory(const Device& device) {
  HOLDFAST_TRY(LoadDecoder());
  return LeastMemoryOn(*decoder_, state_.plan(), state_.job().seq_len, device.matmul, ProcessorOf(device.name), device.memory_bytes > 0 ? HostMemory::kApart : HostMemory::kSame);
}

JobView JobDriver::View() {
  JobView view;
  view.layers = state_.plan().layers;
  view.plan = state_.plan().number;
  view.stages_given = options_.stages_given;
  view.on = options_.on;
  view.reproducible = options_.reproducible;
  view.done = Done();
  view.samples = state_.job().samples;
  view.omitted = state_.OmittedSamples();
  view.skips_left = state_.skips_left();
  for (const StagePlan& s : state_.plan().stages) {
    StageView stage{.stage = s.stage, .first_layer = s.first_layer, .last_layer = s.last_layer, .samples_done = SamplesDone(s),
                    .samples_total = state_.samples_in(), .sealed = Sealed(state_, s.stage), .tail = 0, .owner = {}};
    if (const auto it = state_.stages().find(s.stage); it != state_.stages().end()) {
      stage.tail = it->second.stream.next_seq;
      if (!it->second.stream.released) stage.owner = it->second.stream.claim.node;
      const auto& blame = it->second.blame;
      if (blame && blame->sample < view.samples && !state_.Omitted(blame->sample)) stage.blame = BlameView{blame->sample, blame->why};
    }
    view.stages.push_back(std::move(stage));
  }
  view.memory = LeastMemoryOf(*decoder_, state_.plan(), state_.job().seq_len);
  return view;
}

Status JobDriver::Claim(const std::string& reason, const std::function<Status(const holdfast::Claim&)>& may_take_over) {
  HOLDFAST_TRY(LoadDecoder());
  StreamWriter::Options options;
  options.job = state_.job().uuid;
  options.claim.incarnation = options_.self.nonce;
  options.claim.node = options_.self.node;
  options.claim.reason = reason;
  options.claim.pid = options_.self.pid;
  options.claim.numerics = options_.self.numerics;
  options.may_take_over = may_take_over;
  const std::string stream = RunLayout::JobStream();
  HOLDFAST_TRY(fs_.MakeDirs(state_.layout().TmpDir(options_.self.nonce)));
  const uint32_t number = static_cast<uint32_t>(state_.incarnations().size());
  HOLDFAST_ASSIGN(auto writer, StreamWriter::Open(
                                   fs_, state_.layout(), clock_, state_.ReaderOf(stream),
                                   [&](const Record& r, const Slot& s) { return state_.Apply(stream, r, s); }, options,
                                   {MakeControl({.cls = RecordClass::kIncarnation, .a = number}, options_.self.ToJson())}));
  Adopt(std::move(writer));
  return OkStatus();
}

void JobDriver::Adopt(std::unique_ptr<StreamWriter> writer) {
  writer_ = std::move(writer);
  coordinator_ = std::make_unique<Coordinator>(options_.policy);
  renewed_ns_ = clock_.MonotonicNs();
  view_stale_ = true;
}

Status JobDriver::Lost(Status status) {
  if (status.code() == ErrorCode::kFenced) {
    writer_.reset();
    coordinator_.reset();
  }
  return status;
}

Result<std::optional<std::string>> JobDriver::Coordinate(const std::vector<NodeView>& nodes) {
  HOLDFAST_CHECK(writer_ != nullptr);
  if (!whole_) {                             // elected just now, out of turn
    HOLDFAST_ASSIGN(const bool news, Refresh());
    (void)news;   // the view is stale after a claim
  }
  HOLDFAST_TRY(LoadDecoder());
  HOLDFAST_TRY(Renew());

  std::deque<CoordinatorEvent> events;
  if (view_stale_) {
    if (state_.assignment()) events.push_back(Assigned{*state_.assignment()});
    events.push_back(JobSeen{View()});
    view_stale_ = false;
  }
  for (const NodeView& n : nodes) events.push_back(BeatSeen{n});
  events.push_back(Tick{});
  while (!events.empty()) {
    const CoordinatorEvent event = std::move(events.front());
    events.pop_front();
    for (const CoordinatorAction& action : coordinator_->Step(event, clock_.MonotonicNs())) {
      if (const auto* say = std::get_if<Say>(&action)) {
        if (options_.on_say) options_.on_say(say->text);
      } else if (const auto* fail = std::get_if<FailJob>(&action)) {
        return std::optional<std::string>(fail->detail);
      } else if (const auto* omit = std::get_if<Omit>(&action)) {
        HOLDFAST_TRY(Commit(*omit));
        events.push_front(JobSeen{View()});
      } else {
        HOLDFAST_ASSIGN(Assignment committed, Commit(std::get<Assign>(action)));
        // Before anything else: a commit can take longer than the coordinator waits for it, and what it decided upon then would speak of the plan before.
        events.push_front(JobSeen{View()});
        events.push_front(Assigned{std::move(committed)});
      }
    }
  }
  return std::optional<std::string>();
}

// One slot: the new cut, if there is one, and who works on what.
Result<Assignment> JobDriver::Commit(const Assign& assign) {
  std::vector<Record> records;
  Plan plan = state_.plan();
  if (!assign.ranges.empty()) {
    plan.stages = NumberStages(&state_, assign.ranges);
    plan.number = state_.plans().rbegin()->first + 1;
    records.push_back(MakeControl({.cls = RecordClass::kPlan, .a = plan.number}, plan.ToJson()));
  }
  HOLDFAST_CHECK(assign.places.size() == plan.stages.size());
  Assignment a;
  a.number = state_.assignment() ? state_.assignment()->number + 1 : 0;
  a.plan = plan.number;
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    if (Sealed(state_, plan.stages[i].stage)) continue;
    const StagePlace& place = assign.places[i];
    a.stages.push_back({plan.stages[i].stage, NodeOfSeat(place.node), place.note, DeviceOfSeat(place.node)});
  }
  a.merge_node = assign.merge_node;
  a.numerics = assign.numerics;
  a.why = assign.why;
  records.push_back(MakeControl({.cls = RecordClass::kAssignment, .a = a.number}, a.ToJson()));
  HOLDFAST_TRY(Lost(writer_->Append(std::move(records))));
  HOLDFAST_ASSIGN(const bool news, Refresh());
  (void)news;   // our own
  return a;
}

Status JobDriver::Commit(const Omit& omit) {
  if (state_.skips_left() == 0 || state_.Omitted(omit.sample)) return OkStatus();   // the fold has the last word
  const OmitRecord record{.sample = omit.sample, .stage = omit.stage, .why = omit.why};
  HOLDFAST_TRY(Lost(writer_->Append({MakeControl({.cls = RecordClass::kOmit, .a = omit.sample}, record.ToJson())})));
  HOLDFAST_TRY(FailPoint("omit", std::to_string(omit.sample)));
  HOLDFAST_ASSIGN(const bool news, Refresh());
  (void)news;   // our own
  return OkStatus();
}

Status JobDriver::Renew() {
  if (clock_.MonotonicNs() - renewed_ns_ < kRenewNs) return OkStatus();
  renewed_ns_ = clock_.MonotonicNs();
  const RecordKey key{.cls = RecordClass::kRenew, .a = static_cast<uint32_t>(writer_->epoch()), .b = writer_->next_seq()};
  return Lost(writer_->Append({MakeControl(key, Json{{"epoch", writer_->epoch()}})}));
}

Status JobDriver::Release(const std::string& reason) {
  if (writer_ == nullptr) return OkStatus();
  const Status status = writer_->ReleaseStream(reason);
  writer_.reset();
  coordinator_.reset();
  return status;
}

}  // namespace holdfast
