// SPDX-License-Identifier: Apache-2.0
//
// The two ways in which what was quantized becomes a directory (docs/adr/0030-two-layouts.md). Packed codes and block scales are the same bytes in
// both; names differ, config files differ, and where Model-Optimizer stores a scale of a whole tensor, compressed-tensors stores its reciprocal.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "ledger/base/result.h"

namespace holdfast {

enum class OutputLayout : uint8_t { kModelopt, kCompressedTensors };
inline constexpr std::array kOutputLayouts = {OutputLayout::kModelopt, OutputLayout::kCompressedTensors};

// As --layout, the job record and holdfast.json spell it.
inline const char* LayoutName(OutputLayout layout) { return layout == OutputLayout::kModelopt ? "modelopt" : "compressed-tensors"; }

// kInvalidArgument says which there are. A job record that names none means modelopt.
inline Result<OutputLayout> ParseLayout(const std::string& name) {
  for (const OutputLayout layout : kOutputLayouts) {
    if (name == LayoutName(layout)) return layout;
  }
  if (name.empty()) return OutputLayout::kModelopt;
  return InvalidArgument("layout \"" + name + "\" is not known here; there are modelopt and compressed-tensors");
}

// Names of a quantized linear's tensors, behind the module's.
struct SiteNames {
  const char *codes, *scales, *global, *input;
};
inline const SiteNames& NamesIn(OutputLayout layout) {
  static constexpr SiteNames kModelopt = {".weight", ".weight_scale", ".weight_scale_2", ".input_scale"};
  static constexpr SiteNames kCompressed = {".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale"};
  return layout == OutputLayout::kModelopt ? kModelopt : kCompressed;
}

// Packs hold a linear as Model-Optimizer spells it, whatever the output will be.
inline constexpr OutputLayout kStoredLayout = OutputLayout::kModelopt;

// Between amax / 2688 and what the layout stores; its own inverse but for the rounding.
inline float GlobalScaleIn(OutputLayout layout, float scale) { return layout == OutputLayout::kModelopt ? scale : 1.0f / scale; }

}  // namespace holdfast
