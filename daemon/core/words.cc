// SPDX-License-Identifier: Apache-2.0
#include "daemon/core/words.h"

#include <algorithm>

namespace holdfast {

namespace {

std::string Tenths(uint64_t value, uint64_t unit) {
  const uint64_t tenths = value / unit * 10 + (value % unit * 10 + unit - 1) / unit;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10);
}

}  // namespace

std::string TorchOf(const std::string& numerics) {
  const size_t at = numerics.rfind("libtorch-");
  return at == std::string::npos ? "" : numerics.substr(at, numerics.find('/', at) - at);
}

std::string SizeText(uint64_t bytes) {
  if (bytes < 1'000'000) return std::to_string(bytes) + " bytes";
  return bytes < 1'000'000'000 ? Tenths(bytes, 1'000'000) + " MB" : Tenths(bytes, 1'000'000'000) + " GB";
}

std::string SecondsText(uint64_t ns) {
  constexpr uint64_t kSecond = 1'000'000'000;
  return (ns % kSecond == 0 || ns > 10 * kSecond ? std::to_string(ns / kSecond) : Tenths(ns, kSecond)) + " s";
}

std::string LayersText(const LayerRange& layers) {
  const std::string first = std::to_string(layers.first);
  return layers.second <= layers.first + 1 ? "layer " + first : "layers " + first + "-" + std::to_string(layers.second - 1);
}

std::string ShortfallText(uint64_t needs, const NodeView& largest) {
  const uint64_t has = largest.memory_bytes - std::min(largest.memory_bytes, largest.memory_elsewhere);
  std::string text = "needs " + SizeText(needs) + ", the largest node " + largest.name + " has " + SizeText(has);
  if (has != largest.memory_bytes) text += " beside its other jobs";
  return text + " (" + SizeText(needs - std::min(needs, has)) + " short)";
}

}  // namespace holdfast
