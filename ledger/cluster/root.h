// SPDX-License-Identifier: Apache-2.0
//
// The root: the directory that the nodes share. One queue of jobs, one stream per node name, one run directory per job.
//   ROOT                    text: magic, format number, uuid, how commits are made (link | rename), its own checksum line
//   log/queue/%08x.seg      submissions, cancellations, drains, ends of jobs        (trailers carry the root's uuid as their job)
//   log/node.<name>/%08x.seg   claims and incarnations of a node name
//   jobs/<id>/              run directory of a job (ledger/format/layout.h), logs/<node>.log inside
//   beats/<incarnation>     soft state: what a daemon last said of itself, replaced every two seconds
//   keys/<name>.secret, keys/<name>.public   CURVE keys; 0700, 0600
//   tmp/<incarnation>/<nonce>
#pragma once

#include <memory>
#include <string>

#include "ledger/base/file_system.h"
#include "ledger/format/layout.h"

namespace holdfast {

class RootLayout {
 public:
  explicit RootLayout(std::string root) : run_(root), root_(std::move(root)) {}
  const std::string& root() const { return root_; }
  const RunLayout& streams() const { return run_; }     // for StreamReader and StreamWriter of the queue and node streams
  std::string RootFile() const { return root_ + "/ROOT"; }
  static std::string QueueStream() { return "queue"; }
  static std::string NodeStream(const std::string& node) { return RunLayout::NodeStream(node); }
  std::string JobsDir() const { return root_ + "/jobs"; }
  std::string JobDir(const std::string& job) const { return JobsDir() + "/" + job; }
  std::string JobLog(const std::string& job, const std::string& node) const { return JobDir(job) + "/logs/" + node + ".log"; }
  std::string BeatsDir() const { return root_ + "/beats"; }
  std::string Beat(const Nonce& incarnation) const { return BeatsDir() + "/" + incarnation.Hex(); }
  std::string KeysDir() const { return root_ + "/keys"; }

 private:
  RunLayout run_;
  std::string root_;
};

// [A-Za-z0-9][A-Za-z0-9_.-]{0,63}: what names of nodes and jobs must look like. kInvalidArgument naming `what`.
Status CheckName(const std::string& what, const std::string& name);
std::string JobIdOf(const Nonce& uuid);                 // the first 12 hex digits

struct RootInfo {
  Nonce uuid;
  enum class Commit : uint8_t { kLink, kRename } commit = Commit::kLink;
};
// kNotFound: no root here (or an empty directory). kUnsupported, kCorrupt as CheckFormat.
Result<RootInfo> ReadRoot(FileSystem& fs, const RootLayout& layout);
// Makes the directories, tries whether the directory can be written and whether hard links work (ledger.md 1.4), publishes ROOT if there is
// none. Errors name the directory and what to do: not writable, a run directory or something else lies there. An error of the fail-point
// root.link_probe (HOLDFAST_FAIL=root.link_probe=eio) stands for a server without hard links.
Result<RootInfo> EnsureRoot(FileSystem& fs, const RootLayout& layout, const Nonce& incarnation);

// A file system for directories whose server has no hard links: Link(from, to) becomes an exclusive rename of a directory that holds
// the file ("to" is then a directory with one file "data" in it, `from` is gone); everything that opens or stats such a name finds
// the file. Only the names under which the ledger commits are treated so (*.seg, *.pack, FORMAT, ROOT): everything else passes
// through. What was committed by link(2) is read all the same. Both refer to `fs`, which must live longer.
std::unique_ptr<FileSystem> MakeRenamingFileSystem(FileSystem& fs);
// The file system for everything below a root, as its ROOT says: every process of a root uses this one.
std::unique_ptr<FileSystem> OpenFileSystemFor(FileSystem& fs, const RootInfo& info);

}  // namespace holdfast
