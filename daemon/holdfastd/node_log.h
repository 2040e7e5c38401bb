// SPDX-License-Identifier: Apache-2.0
//
// What a daemon says: one line per state transition, on its standard error and, where it concerns a job, in <job>/logs/<node>.log, which
// `jobctl logs` prints. Only this node writes that file.
#pragma once

#include <string>

#include "ledger/base/clock.h"
#include "ledger/cluster/root.h"

namespace holdfast {

class NodeLog {
 public:
  NodeLog(const Clock& clock, RootLayout layout, std::string node) : clock_(clock), layout_(std::move(layout)), node_(std::move(node)) {}
  void Say(const std::string& text) const;                           // of no job
  void Say(const std::string& job, const std::string& text) const;
  std::string PathOf(const std::string& job) const;                  // makes its directory

 private:
  const Clock& clock_;
  RootLayout layout_;
  std::string node_;
};

}  // namespace holdfast
