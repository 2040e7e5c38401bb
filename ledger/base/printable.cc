// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/printable.h"

#include <cctype>
#include <cstdint>
#include <cstdio>

namespace holdfast {
namespace {

// Bytes of the well-formed UTF-8 character at the beginning of `text`; 0: there is none. (Unicode, table 3-7.)
size_t CharacterLength(std::string_view text) {
  const auto at = [&](size_t i) -> uint8_t { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0; };
  const auto follows = [&](size_t i, uint8_t low = 0x80, uint8_t high = 0xbf) { return at(i) >= low && at(i) <= high; };
  const uint8_t first = at(0);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return follows(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const bool second = first == 0xe0 ? follows(1, 0xa0) : first == 0xed ? follows(1, 0x80, 0x9f) : follows(1);
    return second && follows(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const bool second = first == 0xf0 ? follows(1, 0x90) : first == 0xf4 ? follows(1, 0x80, 0x8f) : follows(1);
    return second && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

bool IsControl(std::string_view character) {
  const auto first = static_cast<uint8_t>(character[0]);
  return first < 0x20 || first == 0x7f || (first == 0xc2 && static_cast<uint8_t>(character[1]) < 0xa0);
}

// "\033[31m" at the beginning of `text`, or 0.
size_t ColourLength(std::string_view text) {
  if (!text.starts_with("\033[")) return 0;
  size_t at = 2;
  while (at < text.size() && at < 6 && std::isdigit(static_cast<unsigned char>(text[at])) != 0) ++at;
  return at > 2 && at < text.size() && text[at] == 'm' ? at + 1 : 0;
}

void Spell(std::string_view bytes, std::string* out) {
  for (const char c : bytes) {
    if (c == '\n' || c == '\t' || c == '\r') {
      out->append(c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\r");
      continue;
    }
    char text[8];
    std::snprintf(text, sizeof text, "\\x%02x", static_cast<uint8_t>(c));
    out->append(text);
  }
}

}  // namespace

std::string Printable(std::string_view text, LineBreaks breaks, ColourCodes colours) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t colour = colours == ColourCodes::kKeep ? ColourLength(text) : 0;
    const size_t whole = colour > 0 ? colour : CharacterLength(text), length = whole > 0 ? whole : 1;
    const std::string_view one = text.substr(0, length);
    const bool plain = colour > 0 || (one == "\n" && breaks == LineBreaks::kKeep) || (whole > 0 && !IsControl(one));
    if (plain) {
      out.append(one);
    } else {
      Spell(one, &out);
    }
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace holdfast
