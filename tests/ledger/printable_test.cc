// SPDX-License-Identifier: Apache-2.0
//
// What a terminal may have of a text, byte for byte: what stays, and how the rest is spelt.
#include "ledger/base/printable.h"

#include <gtest/gtest.h>

namespace holdfast {
namespace {

TEST(Printable, PlainTextStaysAsItIs) {
  for (const std::string text : {"", "a job", "Größe \xe2\x82\xac \xf0\x9f\x98\x80", "~"}) EXPECT_EQ(Printable(text), text);
}

TEST(Printable, ControlCharactersAreSpelt) {
  EXPECT_EQ(Printable("\033[2Jx"), "\\x1b[2Jx");
  EXPECT_EQ(Printable("a\nb\tc\rd\x7f"), "a\\nb\\tc\\rd\\x7f");
  EXPECT_EQ(Printable(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(Printable("\xc2\x9b" "31m"), "\\xc2\\x9b31m") << "the one-character CSI";
  EXPECT_EQ(Printable("\xc2\xa0"), "\xc2\xa0") << "a no-break space is none";
}

TEST(Printable, WhatIsNotUtf8IsSpelt) {
  EXPECT_EQ(Printable("\x9b" "31m"), "\\x9b31m");
  EXPECT_EQ(Printable("a\xc3"), "a\\xc3") << "cut off";
  EXPECT_EQ(Printable("\xe0\x80\x8a"), "\\xe0\\x80\\x8a") << "a line break, spelt too long";
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80") << "half a surrogate pair";
  EXPECT_EQ(Printable("\xf5\x80\x80\x80"), "\\xf5\\x80\\x80\\x80") << "beyond Unicode";
}

TEST(Printable, LineBreaksAndColoursWhereTheyAreWanted) {
  EXPECT_EQ(Printable("a\nb", LineBreaks::kKeep), "a\nb");
  EXPECT_EQ(Printable("\033[31mred\033[0m\033[2J", LineBreaks::kKeep, ColourCodes::kKeep), "\033[31mred\033[0m\\x1b[2J");
  EXPECT_EQ(Printable("\033[m", LineBreaks::kKeep, ColourCodes::kKeep), "\\x1b[m");
  EXPECT_EQ(Printable("\033[31m"), "\\x1b[31m");
}

}  // namespace
}  // namespace holdfast
