// SPDX-License-Identifier: Apache-2.0
//
// The door of a context's tcp listeners: a thread that answers ZAP (RFC 27) on inproc://zeromq.zap.01, denies by default, lets in whose
// public key lies in the keys directory, and remembers whom it turned away and who never got as far as a key. Known keys are let in while
// the directory hangs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ledger/base/result.h"

namespace holdfast {

struct Refused {
  uint64_t count = 0;                  // handshakes that failed since the context was made
  std::vector<std::string> names;      // "10.0.0.9 (unknown key)": the latest, at most 8, each once
};

class Gate {
 public:
  static Result<std::unique_ptr<Gate>> Start(void* zmq_context);   // a zmq::context_t
  ~Gate();                                           // sockets that it watches are closed before
  std::string Domain(const std::string& keys_dir);   // the ZAP domain of listeners that allow the keys in this directory
  void Watch(void* zmq_socket);                      // before it binds: counts handshakes that never got as far as a key
  static void Unwatch(void* zmq_socket);             // before it is closed
  Refused refused() const;

 private:
  struct Impl;
  explicit Gate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
