// SPDX-License-Identifier: Apache-2.0
//
// The sockets of a run, on ZeroMQ (the only box that includes it). A socket belongs to one thread; Wait() blocks on several sockets
// and one event descriptor at once. Lossy on purpose where the ledger is the truth: sends never block.
//   control: workers (DEALER) -> supervisor (ROUTER), WorkerReport as JSON
//   edge:    producer (DEALER) -> consumer (ROUTER), EdgeMessage + payload; credit flows back
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/transport/gate.h"
#include "daemon/transport/keys.h"
#include "daemon/wire/messages.h"

namespace holdfast {

class Context {  // one per process; sockets must die before it
 public:
  Context();
  ~Context();
  Refused refused() const;     // by its tcp listeners, all together. Any thread
  struct Impl;
  Impl* impl() const { return impl_.get(); }

 private:
  std::unique_ptr<Impl> impl_;
};

// How a socket proves itself. All empty: plain, for sockets that do not leave the machine. A router with `self` speaks CURVE only; a dealer
// speaks it when the other side has a key.
struct SocketSecurity {
  CurveKeys self;
  std::string server_key;      // dealer: public key of whom it connects to
  std::string keys_dir;        // router: the allow-list that this context's ZAP handler asks (deny by default)
};

class Socket {
 public:
  enum class Kind : uint8_t { kRouter, kDealer };
  // Binds (router) or connects (dealer) to e.g. "ipc://@name", "tcp://127.0.0.1:5000" or "tcp://10.0.0.2:*". `max_message_bytes` bounds
  // a received frame; `linger_ms` is how long the last messages may still travel after the socket is closed.
  // Errors: kAlreadyExists (address in use), kInvalidArgument (not ours, not an address; plain beyond loopback, in either direction).
  static Result<std::unique_ptr<Socket>> Open(Context& context, Kind kind, const std::string& endpoint, size_t max_message_bytes,
                                              int linger_ms = 0, const SocketSecurity& security = {});
  std::string endpoint() const;   // as bound, with the real port; for 0.0.0.0 and [::] an address that others can reach
  ~Socket();
  // Sends frames without blocking. false: the queue is full or the peer is gone; nothing was sent.
  // For a router the first frame is the peer's routing id, as received.
  bool Send(const std::vector<ByteSpan>& frames);
  // Receives one whole message without blocking; nullopt: none. One of more than `frames_max` frames comes as no frames at all.
  // `sender`: whose key proved itself ("" on plain sockets).
  std::optional<std::vector<Bytes>> Receive(size_t frames_max = 4, std::string* sender = nullptr);
  struct Impl;
  Impl* impl() const { return impl_.get(); }

 private:
  explicit Socket(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Blocks until one of the sockets is readable, `event_fd` (or -1) is readable, or the time is over.
void WaitReadable(const std::vector<Socket*>& sockets, int event_fd, int timeout_ms);

}  // namespace holdfast
