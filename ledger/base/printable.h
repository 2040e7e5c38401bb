// SPDX-License-Identifier: Apache-2.0
//
// Texts that others wrote - records, beats, names of files - as a terminal may have them. Whoever can write into a shared directory must not
// be able to move the cursor of the one who looks at it, or to write lines that look like ours.
#pragma once

#include <string>
#include <string_view>

namespace holdfast {

enum class LineBreaks { kSpell, kKeep };   // spelt: the text is part of one line
enum class ColourCodes { kSpell, kKeep };  // kept: "\033[" digits "m", which only colours

// Control characters (C0, DEL, C1 as UTF-8) and bytes that are not UTF-8 are spelt: \n, \t, \x1b. Everything else stays as it is.
std::string Printable(std::string_view text, LineBreaks breaks = LineBreaks::kSpell, ColourCodes colours = ColourCodes::kSpell);

}  // namespace holdfast
