// SPDX-License-Identifier: Apache-2.0
//
// Log files of several nodes as one, by the time stamp that begins each line. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace holdfast {

struct LogText {
  std::string node, text;
};

// Whether a line begins with "2026-11-21T03:12:44" (or a blank instead of the T).
bool HasStamp(std::string_view line);

// Lines in order of their stamps; equal ones in order of `logs`. A line without a stamp stays behind the one before it. With more than one
// log each line is preceded by its node. What follows the last line end of a text is a line too.
std::string MergeLogs(const std::vector<LogText>& logs);

}  // namespace holdfast
