// SPDX-License-Identifier: Apache-2.0
//
// F093: how the directory is mounted, and what can be seen of the server and of its other clients. Judges texts that the system shows, so that
// it can be tested without mounting anything. Nothing is tried out: whether a server has hard links was settled when the directory was made.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string_view>

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

// Names that many machines have as they come.
bool IsCommonName(const std::string& host) {
  constexpr std::string_view kCommon[] = {"", "(none)", "localhost", "localhost.localdomain", "debian", "ubuntu", "raspberrypi", "nvidia"};
  return std::find(std::begin(kCommon), std::end(kCommon), host) != std::end(kCommon);
}

// An NFSv4 server knows a client by its host's name, unless it has an id of its own: two of one name take each other's state away.
void CheckClientNames(Context* c, const Mount& m) {
  const auto& id = c->options.nfs4_unique_id;
  const std::string remedy = "give each machine its own name, or `options nfs nfs4_unique_id=...` in /etc/modprobe.d; nothing is lost, but both get slower";
  if (m.type == "nfs4" && id && id->empty() && IsCommonName(c->options.host_name)) {
    c->Add("F093", FsckSeverity::kInfo, m.point, "this machine calls itself \"" + c->options.host_name + "\" and has no nfs4_unique_id: to the server every machine of that name is one client", remedy);
  }
  std::map<std::string, std::set<std::string>> machines;
  for (const auto& [nonce, life] : c->log.lives) machines[life.hostname].insert(life.machine_id);
  for (const auto& [host, ids] : machines) {
    if (ids.size() < 2) continue;
    c->Add("F093", FsckSeverity::kInfo, m.point, std::to_string(ids.size()) + " machines that worked here call themselves \"" + host + "\"; without an nfs4_unique_id they are one client to the server", remedy);
  }
}

// Where this machine serves the directory itself, it can be seen how.
void CheckExport(Context* c) {
  std::istringstream lines(c->options.export_table);
  for (std::string line; std::getline(lines, line);) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) continue;
    const std::string path = line.substr(0, tab), who = line.substr(tab + 1);
    const bool inside = path == "/" || c->layout.root() == path || c->layout.root().starts_with(path + "/");
    if (!inside || (who.find("(async,") == std::string::npos && who.find(",async,") == std::string::npos && who.find(",async)") == std::string::npos)) continue;
    c->Error("F093", path, "exported with `async` (" + who.substr(0, who.find('(')) + "): what the server has acknowledged is lost when it crashes", "export it with `sync`: edit /etc/exports, then `exportfs -ra`");
  }
}

}  // namespace

void CheckEnvironment(Context* c) {
  CheckExport(c);
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
  if (FileSystemOf(c->fs, c->layout.root()) != nullptr) {
    c->Add("F093", FsckSeverity::kInfo, m.point, "the server has no hard links: commits are renames here", "");
  }
  CheckClientNames(c, m);
}

}  // namespace holdfast::fsck
