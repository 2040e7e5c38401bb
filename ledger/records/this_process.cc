// SPDX-License-Identifier: Apache-2.0
#include "ledger/records/this_process.h"

#include <utility>

namespace holdfast {

Incarnation DescribeThisProcess(const std::string& node, const std::string& binary, const std::string& device) {
  ProcessIdentity self = ThisProcess();
  Incarnation who;
  who.node = node;
  who.nonce = Nonce::Random();
  who.hostname = std::move(self.hostname);
  who.machine_id = std::move(self.machine_id);
  who.boot_id = std::move(self.boot_id);
  who.binary = binary;
  who.device = device;
  who.pid = self.pid;
  who.start_ticks = self.start_ticks;
  return who;
}

Liveness ProbeIncarnation(const Incarnation& who) {
  return ProbeProcess({.hostname = who.hostname, .machine_id = who.machine_id, .boot_id = who.boot_id, .pid = who.pid, .start_ticks = who.start_ticks});
}

}  // namespace holdfast
