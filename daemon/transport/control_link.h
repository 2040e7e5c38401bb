// SPDX-License-Identifier: Apache-2.0
//
// A daemon's voice: one thread with a ROUTER that listens and a DEALER to every peer. It goes on speaking while the ledger thread
// hangs on a hard mount, and then says so. Everything it brings is a hint. With keys, a beat counts only if the key that brought it is
// that of the node it speaks of.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "daemon/transport/endpoint.h"  // IsLoopback, ParseListen: what `listen` may be
#include "daemon/transport/keys.h"
#include "daemon/wire/beat.h"
#include "ledger/base/clock.h"

namespace holdfast {

struct Peer {
  std::string node, endpoint, public_key;
  friend bool operator==(const Peer&, const Peer&) = default;
};

class ControlLink {
 public:
  struct Options {
    std::string listen;            // "tcp://127.0.0.1:*", "tcp://[::1]:7070"; "" = do not listen and do not speak
    std::string keys_dir;          // for the allow-list; "" with plain sockets
    CurveKeys keys;
    Nonce root;                    // messages of another root are dropped and counted
  };
  // Errors: the address cannot be bound (kAlreadyExists: in use; kInvalidArgument: not ours). A plain listener beyond loopback is refused
  // here too, whoever asks (kInvalidArgument).
  static Result<std::unique_ptr<ControlLink>> Start(const Clock& clock, const Options& options);
  ~ControlLink();

  std::string endpoint() const;                       // as bound, with the port: goes into the incarnation record. "" if it does not listen
  void SetPeers(std::vector<Peer> peers);             // whom to speak to; connections to others are closed
  // Sent every second (with more than 16 nodes more rarely: daemon/wire/beat_pace.h), also on behalf of a caller that has not called for 15 s: then with storage_stalled_ms since the last call, and
  // with one more in `count` for every second of that.
  void SetBeat(const Beat& beat);
  void Hint(const std::string& job, const std::string& stream);   // to every peer, now
  struct Heard {
    std::vector<Beat> beats;                          // newest of each incarnation since the last call
    bool hint = false;                                // somebody wants us to look
    uint64_t dropped = 0, denied = 0;                 // messages that did not decode; handshakes refused, both in all
    std::vector<std::string> denied_names;            // addresses of the latest refused and why, "10.0.0.9 (unknown key)", at most 8
    std::vector<std::string> peer_errors;             // peers of the last SetPeers that cannot even be tried, and why
  };
  Heard Take();
  int event_fd() const;                               // readable when Take has something

 private:
  struct Impl;
  explicit ControlLink(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// jobctl: asks one daemon for all beats that it hears. kTransient: no answer within `timeout_ms`.
Result<std::vector<Beat>> AskBeats(const Nonce& root, const Peer& daemon, const CurveKeys& self, uint64_t timeout_ms);

}  // namespace holdfast
