// SPDX-License-Identifier: Apache-2.0
//
// How a process with all its memory is cloned (a resumed snapshot of a virtual machine): the original writes down what every call told it, and
// the clone is a new process of the same seed that is told the same, at once and without any effect, until the tape ends. From there on both
// live, with the same identity and the same state, and with different random numbers.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ledger/base/file_system.h"

namespace holdfast::sim {

class Tape {
 public:
  struct Entry {
    char what = 0;               // kind of call, to notice a clone that goes astray
    Status status;
    uint64_t number = 0;
    FileInfo info;
    Bytes bytes;
    std::vector<std::string> names;
  };
  bool replaying() const { return at_ < limit_; }
  bool astray() const { return astray_; }
  bool empty() const { return entries_.empty(); }
  Entry Next(char what);
  void Add(Entry entry) { entries_.push_back(std::move(entry)); }
  // A number that comes from outside: the time, a flag.
  uint64_t Number(char what, uint64_t now);
  // For a clone of whoever records this. Only while no file is being written.
  std::unique_ptr<Tape> Copy() const;
  uint32_t open_files = 0;
  std::function<void()> on_live;  // a clone has come to the end of it

 private:
  std::vector<Entry> entries_;
  size_t at_ = 0, limit_ = 0;
  bool astray_ = false;
};

// Both must outlive what is returned.
std::unique_ptr<FileSystem> MakeTapeFs(FileSystem& fs, Tape& tape);

}  // namespace holdfast::sim
