// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/words.h"

#include <algorithm>
#include <utility>

#include "ledger/base/result.h"
#include "ledger/base/units.h"

namespace holdfast {

std::string TorchOf(const std::string& numerics) {
  const size_t at = numerics.rfind("libtorch-");
  return at == std::string::npos ? "" : numerics.substr(at, numerics.find('/', at) - at);
}

std::string SeatName(const std::string& node, const std::string& device) { return device.empty() ? node : node + "/" + device; }
std::string NodeOfSeat(const std::string& seat) { return seat.substr(0, seat.find('/')); }
std::string DeviceOfSeat(const std::string& seat) {
  const size_t slash = seat.find('/');
  return slash == std::string::npos ? "" : seat.substr(slash + 1);
}

std::vector<NodeView> SeatsOf(const NodeView& node) {
  if (node.devices.size() < 2) return {node};
  std::vector<NodeView> seats;
  for (const DeviceView& d : node.devices) {
    NodeView& seat = seats.emplace_back(node);
    seat.name = SeatName(node.name, d.name);
    seat.numerics = d.numerics;
    seat.memory_bytes = d.memory_bytes;
    seat.memory_elsewhere = d.memory_elsewhere;
    seat.host_bytes = d.host_bytes;
    seat.speed = d.speed;
    seat.devices.clear();
  }
  return seats;
}

uint64_t RoomOf(const NodeView& seat) { return seat.memory_bytes - std::min(seat.memory_bytes, seat.memory_elsewhere); }

bool SeatMemory::Fits(const NodeView& seat, const LayerRange& layers, uint64_t room) const {
  const StageMemory of = Of(seat);
  return of(layers.first, layers.second) <= room && of.Host(layers.first, layers.second) <= seat.host_bytes;
}

bool SeatMemory::FitsStreamed(const NodeView& seat, const LayerRange& layers, uint64_t room) const {
  const StageMemory of = Of(seat);
  return of.Least(layers.first, layers.second) <= room && of.Host(layers.first, layers.second) <= seat.host_bytes;
}

std::string SecondsText(uint64_t ns) {
  constexpr uint64_t kSecond = 1'000'000'000;
  const std::string whole = std::to_string(ns / kSecond), tenth = std::to_string(ns % kSecond / (kSecond / 10));
  return (tenth == "0" ? whole : whole + "." + tenth) + " s";
}

std::string LayersText(const LayerRange& layers) {
  const std::string first = std::to_string(layers.first);
  return layers.second <= layers.first + 1 ? "layer " + first : "layers " + first + "-" + std::to_string(layers.second - 1);
}

namespace {

uint64_t Lack(uint64_t needs, uint64_t has) { return needs - std::min(needs, has); }

// What layers take of a seat, and what it has: of its own memory, and of the host's besides.
struct Balance {
  const NodeView* seat = nullptr;
  uint64_t needs = 0, has = 0, host_needs = 0, host_has = 0;
  uint64_t lack() const { return Lack(needs, has) + Lack(host_needs, host_has); }
};

template <class F>
Balance Closest(const std::vector<NodeView>& seats, F balance_of) {
  HOLDFAST_CHECK(!seats.empty());
  Balance closest;
  for (const NodeView& seat : seats) {
    const Balance b = balance_of(seat);
    if (closest.seat == nullptr || std::pair(b.lack(), seat.name) < std::pair(closest.lack(), closest.seat->name)) closest = b;
  }
  return closest;
}

}  // namespace

std::string ShortfallText(const LayerRange& layers, const std::vector<NodeView>& seats, const SeatMemory& memory) {
  const uint32_t first = layers.first, last = layers.second;
  const Balance b = Closest(seats, [&](const NodeView& seat) {
    const StageMemory of = memory.Of(seat);
    return Balance{&seat, of(first, last), RoomOf(seat), of.Host(first, last), seat.host_bytes};
  });
  const auto text = [&](uint64_t needs, const std::string& what, uint64_t has, const std::string& beside) {
    return "needs " + FormatSize(needs) + what + " on " + b.seat->name + ", which comes closest with " + FormatSize(has) + beside + " (" + FormatSize(Lack(needs, has)) + " short)";
  };
  if (b.needs <= b.has && b.host_needs > b.host_has) return text(b.host_needs, " of the host's memory", b.host_has, "");
  return text(b.needs, "", b.has, b.has != b.seat->memory_bytes ? " beside its other jobs" : "");
}

std::string LackText(const LayerRange& layers, const std::vector<NodeView>& seats, const SeatMemory& memory) {
  const uint32_t first = layers.first, last = layers.second;
  const Balance b = Closest(seats, [&](const NodeView& seat) {
    const StageMemory of = memory.Of(seat);
    return Balance{&seat, of.Least(first, last), seat.memory_bytes, of.Host(first, last), seat.host_bytes};
  });
  const auto text = [&](uint64_t needs, const std::string& what, uint64_t has) {
    return b.seat->name + " has " + FormatSize(has) + what + ", it needs " + FormatSize(needs) + " (" + std::to_string(Lack(needs, has)) + " bytes more)";
  };
  return b.needs <= b.has && b.host_needs > b.host_has ? text(b.host_needs, " of the host's memory", b.host_has) : text(b.needs, "", b.has);
}

}  // namespace holdfast
