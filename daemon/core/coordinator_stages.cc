// SPDX-License-Identifier: Apache-2.0
//
// The half of the coordinator that decides who works on which stage: each decision starts from the latest assignment, keeps what may
// stay, places the rest, and says something only if the outcome differs.
#include <algorithm>
#include <tuple>
#include <utility>

#include "daemon/core/coordinator.h"
#include "daemon/core/cutter.h"
#include "daemon/core/words.h"
#include "ledger/base/units.h"

namespace holdfast {

namespace {

constexpr size_t kErrorCharsMax = 200;  // of a node's own words inside a note

std::string Shortened(const std::string& text) { return text.size() <= kErrorCharsMax ? text : text.substr(0, kErrorCharsMax) + "..."; }

void Append(std::string& list, const std::string& text) {
  if (!text.empty() && list.find(text) == std::string::npos) list += (list.empty() ? "" : "; ") + text;
}

}  // namespace

void Coordinator::DecideStages() {
  const Requirement required = Required();
  const std::vector<NodeView> usable = Usable(required);
  if (assignment_) SayWhyNot(required);
  else if (!MayBegin(usable)) return;
  std::vector<Item> items = Items(required);
  if (Untouched()) {
    items = FirstCut(usable, std::move(items));
  } else {
    Place(items, usable, required);
    for (const Item& item : items) {
      const auto fits = [&](const NodeView& seat) { return job_->memory.FitsStreamed(seat, item.layers, seat.memory_bytes); };
      if (!item.sealed && item.stage && FailGivenUp(*item.stage, StageText(item), !item.place.node.empty(), fits, required)) return;
    }
    if (Split(items, usable, required)) Place(items, usable, required);
    Rebalance(items, usable);
  }
  Propose(std::move(items), required);
}

// The first placement waits a little for more nodes to speak up, and for any node at all as long as one may be silent.
bool Coordinator::MayBegin(const std::vector<NodeView>& usable) {
  const auto there = [&](const std::string& name) {
    return std::any_of(usable.begin(), usable.end(), [&](const NodeView& n) { return NodeOfSeat(n.name) == name; });
  };
  if (!job_->on.empty() && std::all_of(job_->on.begin(), job_->on.end(), there)) return true;
  if (usable.empty()) gathering_.reset();
  else if (!gathering_) gathering_ = now_;
  return gathering_ ? now_ - *gathering_ >= policy_.gather_ns : heard_.KnowsAll(now_);
}

// Nobody has begun anywhere, or tried to: the cut may still be made for the nodes that are there.
bool Coordinator::Untouched() const {
  if (job_->stages_given || Begun()) return false;
  const auto gave_up = [this](const StageView& s) {
    return std::any_of(heard_.nodes().begin(), heard_.nodes().end(), [&](const auto& n) {
      const std::vector<NodeView> seats = SeatsOf(n.second.view);
      return std::any_of(seats.begin(), seats.end(), [&](const NodeView& seat) { return GaveUp(seat.name, s.stage) != nullptr; });
    });
  };
  const auto given = [](const Assignment::Entry& e) { return !e.node.empty(); };
  return std::none_of(job_->stages.begin(), job_->stages.end(), gave_up) &&
         (!assignment_ || std::none_of(assignment_->stages.begin(), assignment_->stages.end(), given));
}

bool Coordinator::Begun() const {
  return std::any_of(job_->stages.begin(), job_->stages.end(),
                     [](const StageView& s) { return s.sealed || s.samples_done > 0 || !s.owner.empty(); });
}

Coordinator::Requirement Coordinator::Required() const {
  std::string pin = job_->reproducible && assignment_ ? assignment_->numerics : "";
  if (job_->reproducible && pin.empty()) pin = job_->numerics;
  if (!pin.empty()) return {pin, TorchOf(pin)};
  if (!TorchOf(job_->numerics).empty()) return {"", TorchOf(job_->numerics)};
  // Nobody has claimed a stage yet: whoever was given the first one.
  if (!job_->reproducible && assignment_) {
    for (const Assignment::Entry& e : assignment_->stages) {
      const HeardNode* n = heard_.Find(e.node);
      if (n && n->heard && !n->lost) return {"", TorchOf(n->view.numerics)};   // one libtorch serves all devices of a node
    }
    if (!torch_.empty() && Begun()) return {"", torch_};
  }
  return MostCapable();
}

// The class of nodes with the most memory, then speed, in which the work fits; if it fits in none, the largest.
Coordinator::Requirement Coordinator::MostCapable() const {
  std::map<std::string, std::vector<NodeView>> classes;
  for (const NodeView& n : Usable({})) classes[job_->reproducible ? n.numerics : TorchOf(n.numerics)].push_back(n);
  const auto fits = [&](const std::vector<NodeView>& nodes) {
    const auto one = [&](uint32_t first, uint32_t last) {
      return std::any_of(nodes.begin(), nodes.end(), [&](const NodeView& n) { return job_->memory.Fits(n, {first, last}, RoomOf(n)); });
    };
    if (job_->stages_given) return std::all_of(job_->stages.begin(), job_->stages.end(), [&](const StageView& s) { return one(s.first_layer, s.last_layer); });
    for (uint32_t l = 0; l < job_->layers; ++l) {
      if (!one(l, l + 1)) return false;
    }
    return true;
  };
  std::tuple<bool, uint64_t, uint64_t> most{};
  std::string best;
  for (const auto& [name, nodes] : classes) {
    std::tuple<bool, uint64_t, uint64_t> sum{fits(nodes), 0, 0};
    for (const NodeView& n : nodes) {
      std::get<1>(sum) += n.memory_bytes;
      std::get<2>(sum) += n.speed;
    }
    if (sum > most) most = sum, best = name;
  }
  return job_->reproducible ? Requirement{best, TorchOf(best)} : Requirement{"", best};
}

std::optional<NodeView> Coordinator::FindSeat(const std::string& seat) const {
  const HeardNode* n = heard_.Find(NodeOfSeat(seat));
  for (const NodeView& s : n ? SeatsOf(n->view) : std::vector<NodeView>{}) {
    if (s.name == seat) return s;
  }
  return std::nullopt;
}

const std::string* Coordinator::GaveUp(const std::string& seat, StageId stage) const {
  const HeardNode* n = heard_.Find(NodeOfSeat(seat));
  return n ? heard_.GaveUp(*n, stage, DeviceOfSeat(seat)) : nullptr;
}

std::string Coordinator::WhyNot(const HeardNode& node, const NodeView& seat, const Requirement& required) const {
  const NodeView& v = node.view;
  if (v.draining) return v.name + " drains";
  if (v.version != policy_.version) return v.name + " has holdfast " + v.version + ", this job is coordinated by " + policy_.version;
  if (!required.torch.empty() && TorchOf(v.numerics) != required.torch) {
    const std::string has = TorchOf(v.numerics);
    return v.name + " has " + (has.empty() ? "no libtorch that it names" : has) + ", this job has " + required.torch;
  }
  if (!required.numerics.empty() && seat.numerics != required.numerics) {
    return seat.name + " computes as " + seat.numerics + ", this job is pinned to " + required.numerics + " (--reproducible)";
  }
  if (heard_.Refused(node)) return v.name + " refused: " + Shortened(node.refused->error);
  return "";
}

std::vector<NodeView> Coordinator::Usable(const Requirement& required) const {
  std::vector<NodeView> usable;
  for (const auto& [name, n] : heard_.nodes()) {
    if (!heard_.Fresh(n, now_) || n.lost) continue;
    for (NodeView& seat : SeatsOf(n.view)) {
      if (WhyNot(n, seat, required).empty()) usable.push_back(std::move(seat));
    }
  }
  return usable;
}

std::vector<Coordinator::Item> Coordinator::Items(const Requirement& required) const {
  std::vector<Item> items;
  for (const StageView& s : job_->stages) {
    Item& item = items.emplace_back();
    item.layers = {s.first_layer, s.last_layer};
    item.stage = s.stage;
    item.sealed = s.sealed;
    if (item.sealed) continue;
    for (const Assignment::Entry& e : assignment_ ? assignment_->stages : std::vector<Assignment::Entry>{}) {
      if (e.stage != s.stage) continue;
      item.entered = true;
      item.before = SeatName(e.node, e.device);
      item.old_note = e.note;
    }
    item.reason = WhyLeave(item, required);
    item.pinned = !item.before.empty() && item.reason.empty();
  }
  if (items.empty()) items.emplace_back().layers = {0, job_->layers};
  return items;
}

// Why a stage cannot stay on the node that has it; "" when it can, or has none.
std::string Coordinator::WhyLeave(const Item& item, const Requirement& required) const {
  const std::string node = NodeOfSeat(item.before);
  const HeardNode* n = heard_.Find(node);
  if (!n) return "";
  if (n->lost) return "node " + node + " lost (silent for " + SecondsText(policy_.suspect_ns) + ")";
  if (!n->heard) return "";
  const std::optional<NodeView> seat = FindSeat(item.before);
  if (!seat) return "node " + node + " was started anew with other devices than " + item.before;
  const std::string why_not = WhyNot(*n, *seat, required);
  if (!why_not.empty()) return why_not;
  if (const std::string* why = GaveUp(item.before, *item.stage)) return item.before + " gave up: " + Shortened(*why);
  if (!job_->memory.FitsStreamed(*seat, item.layers, seat->memory_bytes)) return LackText(item.layers, {*seat}, job_->memory);
  if (Stuck(item, *n, required)) return item.before + " has been short of memory for " + SecondsText(policy_.suspect_ns);
  return "";
}

// A node that takes no samples for lack of memory may never again (the memory may be the stage's own): another that could, should.
bool Coordinator::Stuck(const Item& item, const HeardNode& node, const Requirement& required) const {
  const auto moved = moved_.find(*item.stage);
  const TimeNs since = std::max(node.paused, moved == moved_.end() ? 0 : moved->second);
  if (!node.view.paused || now_ - since < policy_.suspect_ns) return false;
  const std::vector<NodeView> usable = Usable(required);
  return std::any_of(usable.begin(), usable.end(), [&](const NodeView& n) {
    return !n.paused && job_->memory.Fits(n, item.layers, RoomOf(n)) && !GaveUp(n.name, *item.stage);
  });
}

std::vector<Coordinator::Item> Coordinator::FirstCut(const std::vector<NodeView>& usable, std::vector<Item> items) const {
  const auto cut = CutAndPlace(job_->layers, usable, job_->memory);
  if (!cut.ok()) {
    for (Item& item : items) item.place.note = cut.error().message;
    return items;
  }
  std::vector<Item> placed;
  for (const PlacedRange& r : *cut) {
    Item& item = placed.emplace_back();
    for (const Item& old : items) {
      if (old.layers == r.layers) item = old;
    }
    item.layers = r.layers;
    item.place.node = r.node;
  }
  return placed;
}

StageWish Coordinator::WishOf(const Item& item, size_t index, size_t items, const std::vector<NodeView>& usable) const {
  StageWish wish{.layers = item.layers, .asked = {}, .owner = {}, .pinned = item.pinned, .barred = {}};
  if (item.pinned) wish.owner = item.before;
  if (!item.stage) return wish;
  if (job_->on.size() == items && items == job_->stages.size()) wish.asked = job_->on[index];
  for (const StageView& s : job_->stages) {
    if (s.stage == *item.stage && !item.pinned) wish.owner = s.owner;
  }
  for (const NodeView& n : usable) {
    if (GaveUp(n.name, *item.stage)) wish.barred.push_back(n.name);
  }
  return wish;
}

void Coordinator::Place(std::vector<Item>& items, const std::vector<NodeView>& usable, const Requirement& required) const {
  std::vector<StageWish> wishes;
  std::vector<Item*> of;
  for (size_t i = 0; i < items.size(); ++i) {
    Item& item = items[i];
    if (item.sealed) continue;
    StageWish wish = WishOf(item, i, items.size(), usable);
    const HeardNode* asked = heard_.Find(wish.asked);
    item.held = !item.pinned && asked && !asked->lost && !heard_.Fresh(*asked, now_);
    if (Is(CoordinatorPolicy::Mutant::kLeavesTheWaiting)) item.held = item.held || (item.entered && item.before.empty());
    if (item.held) {
      item.place = {"", "waits for " + wish.asked + ", which --on asks for and which is not heard"};
    } else {
      wishes.push_back(std::move(wish));
      of.push_back(&item);
    }
  }
  const std::vector<StagePlace> places = PlaceStages(wishes, usable, job_->memory);
  for (size_t i = 0; i < places.size(); ++i) {
    of[i]->place = places[i];
    if (places[i].node.empty()) of[i]->place.note = WaitNote(*of[i], usable.empty() ? "" : places[i].note, required);
    else if (!of[i]->pinned && of[i]->reason.empty()) of[i]->reason = NotAsAsked(wishes[i], *of[i], required);
  }
}

// Why a stage lies elsewhere than --on asks for; "" when it does not.
std::string Coordinator::NotAsAsked(const StageWish& wish, const Item& item, const Requirement& required) const {
  if (wish.asked.empty() || NodeOfSeat(item.place.node) == wish.asked) return "";
  const HeardNode& n = *heard_.Find(wish.asked);
  const std::vector<NodeView> seats = SeatsOf(n.view);
  const std::string why_not = n.heard ? WhyNot(n, seats.front(), required) : "";
  const bool gave_up = std::any_of(seats.begin(), seats.end(), [&](const NodeView& seat) { return GaveUp(seat.name, *item.stage) != nullptr; });
  std::string text = "--on asks for " + wish.asked;
  if (n.lost) return text + (n.heard ? ", which is lost" : ", which was never heard: see `jobctl nodes`");
  if (!why_not.empty()) return text + ", but " + why_not;
  return text + (gave_up ? ", which gave up on it" : ", which is too small: " + LackText(item.layers, seats, job_->memory));
}

// By how much the node that comes closest is too small, and of every other node that is there why it cannot.
std::string Coordinator::WaitNote(const Item& item, const std::string& note, const Requirement& required) const {
  std::string text = note;
  for (const auto& [name, n] : heard_.nodes()) {
    if (!n.heard || n.lost) continue;
    for (const NodeView& seat : SeatsOf(n.view)) {
      const std::string why = WhyNot(n, seat, required);
      Append(text, why);
      const std::string* gave_up = item.stage ? GaveUp(seat.name, *item.stage) : nullptr;
      if (why.empty() && gave_up) Append(text, seat.name + " gave up: " + Shortened(*gave_up));
    }
  }
  return text.empty() ? "no node is there" : text;
}

// Whether a node that is not lost could take it whole, were it free.
bool Coordinator::FitsSomeone(const Item& item, const Requirement& required) const {
  return std::any_of(heard_.nodes().begin(), heard_.nodes().end(), [&](const auto& entry) {
    const HeardNode& n = entry.second;
    if (!n.heard || n.lost) return false;
    const std::vector<NodeView> seats = SeatsOf(n.view);
    return std::any_of(seats.begin(), seats.end(), [&](const NodeView& s) { return WhyNot(n, s, required).empty() && job_->memory.Fits(s, item.layers, s.memory_bytes); });
  });
}

// Cuts what has fitted no node for `suspect`, or has one stream it: a larger node had its time to come. What a lost node had has waited already.
bool Coordinator::Split(std::vector<Item>& items, const std::vector<NodeView>& usable, const Requirement& required) {
  std::vector<Item> cut;
  bool any = false;
  for (Item& item : items) {
    const bool unfit = !item.sealed && !item.held && item.place.node.empty() && !FitsSomeone(item, required);
    if (!unfit || !item.stage) {
      if (item.stage) unfit_since_.erase(*item.stage);
      cut.push_back(std::move(item));
      continue;
    }
    const HeardNode* had = heard_.Find(NodeOfSeat(item.before));
    const TimeNs since = unfit_since_.try_emplace(*item.stage, had && had->lost ? had->alive : now_).first->second;
    const auto pieces = now_ - since >= policy_.suspect_ns ? SplitRange(item.layers, usable, job_->memory) : std::nullopt;
    if (pieces && pieces->size() == 1 && !pieces->front().node.empty()) {
      item.place = {pieces->front().node, ""};
      item.reason = (item.reason.empty() ? "" : item.reason + "; ") + StageText(item) + " fits no node whole and is streamed";
    }
    if (!pieces || pieces->size() < 2) {
      cut.push_back(std::move(item));
      continue;
    }
    any = true;
    for (const PlacedRange& p : *pieces) {
      Item& piece = cut.emplace_back();
      piece.layers = p.layers;
      piece.reason = (item.reason.empty() ? "" : item.reason + "; ") + StageText(item) + " fits no node whole and is cut";
    }
  }
  items = std::move(cut);
  return any;
}

uint64_t Coordinator::WorkLeft(const Item& item) const {
  const uint64_t layers = item.layers.second - item.layers.first;
  for (const StageView& s : job_->stages) {
    if (item.stage && s.stage == *item.stage) return layers * (s.samples_total - std::min(s.samples_done, s.samples_total) + 1);
  }
  return layers;
}

void Coordinator::Propose(std::vector<Item> items, const Requirement& required) {
  Assign assign{.ranges = {}, .places = {}, .merge_node = "", .numerics = job_->reproducible ? required.numerics : "", .why = assignment_ ? "" : "start"};
  bool moved = !assignment_ || items.size() != job_->stages.size() || !assignment_->merge_node.empty() || assignment_->numerics != assign.numerics;
  bool noted = false;
  const bool cut = items.size() != job_->stages.size() || std::any_of(items.begin(), items.end(), [](const Item& i) { return !i.stage; });
  std::vector<std::string> says;
  for (Item& item : items) {
    if (cut) assign.ranges.push_back(item.layers);
    const bool stays = item.sealed || (item.entered && item.place.node == item.before);
    const bool waits = item.place.node.empty();
    if (stays && (!waits || !heard_.KnowsAll(now_))) item.place.note = item.old_note;
    if (stays && waits && !item.sealed) noted = noted || item.place.note != item.old_note;
    if (!stays) {
      moved = true;
      if (!waits) item.place.note = item.reason;
      Append(assign.why, item.reason.empty() && assignment_ && !waits ? item.place.node + " is there" : item.reason);
      says.push_back((item.reason.empty() ? "" : item.reason + ": ") + StageText(item) +
                     (waits ? " waits: " + item.place.note : (item.stage ? " goes to " : " to ") + item.place.node));
    }
    assign.places.push_back(item.sealed ? StagePlace{} : item.place);
  }
  const bool rewrite = noted && now_ - noted_ >= policy_.tenure_ns;  // a note that wobbles is not written with every beat
  if (!moved && !rewrite && !Is(CoordinatorPolicy::Mutant::kRepeatsItself)) return;
  if (assign.why.empty()) assign.why = moved ? "the stages changed" : "what the waiting stages need changed";
  for (std::string& s : says) SayText(std::move(s));
  torch_ = required.torch;
  Emit(std::move(assign));
}

}  // namespace holdfast
