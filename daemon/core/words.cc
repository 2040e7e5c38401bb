// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/words.h"

#include <algorithm>

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
    seat.speed = d.speed;
    seat.devices.clear();
  }
  return seats;
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

std::string ShortfallText(uint64_t needs, const NodeView& largest) {
  const uint64_t has = largest.memory_bytes - std::min(largest.memory_bytes, largest.memory_elsewhere);
  std::string text = "needs " + FormatSize(needs) + ", the largest node " + largest.name + " has " + FormatSize(has);
  if (has != largest.memory_bytes) text += " beside its other jobs";
  return text + " (" + FormatSize(needs - std::min(needs, has)) + " short)";
}

}  // namespace holdfast
