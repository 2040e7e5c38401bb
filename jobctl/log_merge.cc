// SPDX-License-Identifier: Apache-2.0
#include "jobctl/log_merge.h"

#include <algorithm>

namespace holdfast {
namespace {

constexpr std::string_view kShape = "dddd-dd-ddTdd:dd:dd";

struct Line {
  std::string_view stamp;    // everything up to the first blank behind the time; of the line before where there is none
  size_t node = 0;
  std::string_view text;
};

std::string_view StampOf(std::string_view line) { return line.substr(0, std::min(line.find(' ', kShape.size()), line.size())); }

}  // namespace

bool HasStamp(std::string_view line) {
  if (line.size() < kShape.size()) return false;
  for (size_t i = 0; i < kShape.size(); ++i) {
    const char c = line[i], want = kShape[i];
    const bool fits = want == 'd' ? c >= '0' && c <= '9' : want == 'T' ? c == 'T' || c == ' ' : c == want;
    if (!fits) return false;
  }
  return true;
}

std::string MergeLogs(const std::vector<LogText>& logs) {
  std::vector<Line> lines;
  size_t width = 0;
  for (size_t n = 0; n < logs.size(); ++n) {
    width = std::max(width, logs[n].node.size());
    std::string_view rest = logs[n].text, stamp;
    while (!rest.empty()) {
      const size_t end = std::min(rest.find('\n'), rest.size());
      const std::string_view line = rest.substr(0, end);
      if (HasStamp(line)) stamp = StampOf(line);
      lines.push_back({stamp, n, line});
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }
  std::stable_sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) { return a.stamp < b.stamp; });
  std::string out;
  for (const Line& line : lines) {
    if (logs.size() > 1) {
      const std::string& node = logs[line.node].node;
      out += node + std::string(width - node.size() + 1, ' ');
    }
    out += std::string(line.text) + "\n";
  }
  return out;
}

}  // namespace holdfast
