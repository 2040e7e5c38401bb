// SPDX-License-Identifier: Apache-2.0
//
// Addresses of sockets: what a person types, what a socket binds, what is told to others, and whether it leaves the machine.
#pragma once

#include <string>

#include "ledger/base/result.h"

namespace holdfast {

// "tcp://127.x", "tcp://[::1]", "ipc://", "inproc://". Numeric addresses only: a name can mean anything tomorrow.
bool IsLoopback(const std::string& endpoint);

// "10.0.0.2", "10.0.0.2:7070", "[fe80::1]:7070", "spark1:7070", "eth0", "*": a tcp endpoint to bind; port "*" if none is said. Names of hosts
// and interfaces become the address that they have now. kInvalidArgument.
Result<std::string> ParseListen(const std::string& address);

// What to tell others of a bound endpoint: of 0.0.0.0 and [::], the first address that this machine has beyond loopback.
std::string Reachable(const std::string& bound);

}  // namespace holdfast
