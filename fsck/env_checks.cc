// SPDX-License-Identifier: Apache-2.0
//
// F093: how the directory is mounted. Judges the text of /proc/self/mountinfo, so that it can be tested without mounting anything.
#include <sstream>

#include "fsck/context.h"

namespace holdfast::fsck {
namespace {

struct Mount {
  std::string point, type, options;   // options: of the mount and of the file system, each between commas
};

// The mount that `path` lies in: the longest mount point, of equal ones the last (it lies on top).
Mount MountOf(const std::string& table, const std::string& path) {
  Mount best;
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string skip, point, options, word, type, source, super;
    fields >> skip >> skip >> skip >> skip >> point >> options;
    while (fields >> word && word != "-") {
    }
    fields >> type >> source >> super;
    const bool inside = point == "/" || path == point || path.starts_with(point + "/");
    if (inside && point.size() >= best.point.size()) best = {point, type, "," + options + "," + super + ","};
  }
  return best;
}

}  // namespace

void CheckEnvironment(Context* c) {
  const Mount m = MountOf(c->options.mount_table, c->layout.root());
  if (!m.type.starts_with("nfs")) return;
  const auto has = [&](const std::string& option) { return m.options.find("," + option + ",") != std::string::npos; };
  const std::string right = "mount it with vers=4.2,hard,proto=tcp,timeo=600,retrans=2,lookupcache=positive,noatime";
  for (const char* option : {"soft", "softerr"}) {
    if (has(option)) c->Error("F093", m.point, std::string("mounted with `") + option + "`: a slow server turns into write errors, and those into lost data", right);
  }
  if (has("nocto")) c->Error("F093", m.point, "mounted with `nocto`: a node may read what another one has long replaced", right);
  if (!has("lookupcache=positive") && !has("lookupcache=pos") && !has("lookupcache=none")) {
    c->Add("F093", FsckSeverity::kInfo, m.point, "names that were missing may seem to be missing for 30 seconds more; nothing depends on it", right);
  }
}

}  // namespace holdfast::fsck
