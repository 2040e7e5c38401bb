// SPDX-License-Identifier: Apache-2.0
#include "daemon/transport/sockets.h"

#include <algorithm>
#include <mutex>
#include <zmq.hpp>

#include "daemon/transport/endpoint.h"

namespace holdfast {
namespace {

// Messages that a connection may have queued, from what one of them may weigh: 32 MiB, but never so few that a pipeline starves.
constexpr size_t kQueueBytesMax = 32u << 20;
constexpr int kZapEnforceDomain = 93;

int QueueLength(size_t max_message_bytes) {
  return static_cast<int>(std::clamp<size_t>(kQueueBytesMax / std::max<size_t>(max_message_bytes, 1), 8, 64));
}

}  // namespace

struct Context::Impl {
  zmq::context_t context{1};
  std::mutex mutex;
  std::unique_ptr<Gate> gate;  // from the first listener that wants one; dies before the context

  Result<Gate*> TheGate() {
    std::lock_guard lock(mutex);
    if (!gate) {
      HOLDFAST_ASSIGN(gate, Gate::Start(&context));
    }
    return gate.get();
  }
};
Context::Context() : impl_(std::make_unique<Impl>()) {}
Context::~Context() = default;

Refused Context::refused() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->gate ? impl_->gate->refused() : Refused{};
}

struct Socket::Impl {
  zmq::socket_t socket;
  std::string endpoint;
  ~Impl() {
    if (socket.handle() != nullptr) Gate::Unwatch(socket.handle());
  }
};
Socket::Socket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Socket::~Socket() = default;
std::string Socket::endpoint() const { return impl_->endpoint; }

namespace {

Status CheckSecurity(Socket::Kind kind, const std::string& endpoint, const SocketSecurity& security) {
  const bool keys = !security.self.secret_key.empty();
  if (kind == Socket::Kind::kDealer && !security.server_key.empty() && !keys) {
    return InvalidArgument(endpoint + " wants to know who speaks, and there are no keys here: jobctl --root DIR keygen");
  }
  if (keys && kind == Socket::Kind::kRouter && security.keys_dir.empty()) {
    return InvalidArgument(endpoint + ": keys, but no directory that says whose keys are allowed");
  }
  const bool curve = keys && (kind == Socket::Kind::kRouter || !security.server_key.empty());
  if (curve || IsLoopback(endpoint)) return OkStatus();
  if (kind == Socket::Kind::kDealer) {
    return InvalidArgument(endpoint + " is on another machine and has no public key: make keys for every node with jobctl --root DIR keygen, then restart it");
  }
  return InvalidArgument(endpoint + " can be reached from other machines, and without keys anybody could speak there: make keys with jobctl --root DIR keygen, or listen on 127.0.0.1");
}

void SetOptions(zmq::socket_t& s, const std::string& endpoint, size_t max_message_bytes, int linger_ms) {
  const int queue = QueueLength(max_message_bytes);
  s.set(zmq::sockopt::linger, linger_ms);
  s.set(zmq::sockopt::maxmsgsize, static_cast<int64_t>(max_message_bytes));
  s.set(zmq::sockopt::sndhwm, queue);
  s.set(zmq::sockopt::rcvhwm, queue);
  s.set(zmq::sockopt::reconnect_ivl, 200);
  s.set(zmq::sockopt::reconnect_ivl_max, 5000);
  s.set(zmq::sockopt::connect_timeout, 5000);   // a peer whose link was down is tried again at once when it is up
  s.set(zmq::sockopt::handshake_ivl, 5000);     // and one who connects and says nothing is not kept longer
  // A dead link is TCP's to notice. Not ZMTP's heartbeats: libzmq 4.3 aborts the process when one falls due on a connection that ended
  // while its reader stood still (zeromq/libzmq#4364, #4767), which is what a paused or stalled node is.
  s.set(zmq::sockopt::tcp_keepalive, 1);
  s.set(zmq::sockopt::tcp_keepalive_idle, 2);
  s.set(zmq::sockopt::tcp_keepalive_intvl, 2);
  s.set(zmq::sockopt::tcp_keepalive_cnt, 2);
  s.set(zmq::sockopt::tcp_maxrt, 6000);
  // With this option an IPv4 address would become an IPv6 one that maps it.
  s.set(zmq::sockopt::ipv6, endpoint.find('[') != std::string::npos || endpoint.starts_with("tcp://*"));
}

// Keys of a listener: ZAP must say yes (its domain is enforced). Keys of a dealer: only the server that owns server_key will do.
Status SetCurve(Context& context, Socket::Kind kind, const SocketSecurity& security, zmq::socket_t& s) {
  if (security.self.secret_key.empty() || (kind == Socket::Kind::kDealer && security.server_key.empty())) return OkStatus();
  s.set(zmq::sockopt::curve_publickey, security.self.public_key);
  s.set(zmq::sockopt::curve_secretkey, security.self.secret_key);
  if (kind == Socket::Kind::kDealer) {
    s.set(zmq::sockopt::curve_serverkey, security.server_key);
    return OkStatus();
  }
  HOLDFAST_ASSIGN(Gate* const gate, context.impl()->TheGate());
  s.set(zmq::sockopt::curve_server, true);
  s.set(zmq::sockopt::zap_domain, gate->Domain(security.keys_dir));
  const int enforce = 1;  // by number: the headers keep this option among their drafts, the library has it in every build
  if (zmq_setsockopt(s.handle(), kZapEnforceDomain, &enforce, sizeof(enforce)) != 0) {
    return Unsupported("this libzmq cannot enforce authentication (option ZAP_ENFORCE_DOMAIN): it must be 4.3 or newer");
  }
  return OkStatus();
}

Error OpenError(const zmq::error_t& e, Socket::Kind kind, const std::string& endpoint) {
  const std::string doing = (kind == Socket::Kind::kRouter ? "cannot listen on " : "cannot connect to ") + endpoint + ": " + e.what();
  switch (e.num()) {
    case EADDRINUSE: return MakeError(ErrorCode::kAlreadyExists, doing + "; another daemon? see who with ss -ltnp, or listen on another port");
    case EADDRNOTAVAIL:
    case ENODEV: return InvalidArgument(doing + "; this machine has no such address (ip -br addr shows which it has)");
    case EACCES:
    case EINVAL:
    case EPROTONOSUPPORT: return InvalidArgument(doing);
    default: return Internal(doing);
  }
}

}  // namespace

Result<std::unique_ptr<Socket>> Socket::Open(Context& context, Kind kind, const std::string& endpoint, size_t max_message_bytes,
                                             int linger_ms, const SocketSecurity& security) {
  HOLDFAST_TRY(CheckSecurity(kind, endpoint, security));
  try {
    auto impl = std::make_unique<Impl>();
    impl->socket = zmq::socket_t(context.impl()->context, kind == Kind::kRouter ? zmq::socket_type::router : zmq::socket_type::dealer);
    zmq::socket_t& s = impl->socket;
    SetOptions(s, endpoint, max_message_bytes, linger_ms);
    HOLDFAST_TRY(SetCurve(context, kind, security, s));
    if (kind == Kind::kRouter) {
      if (endpoint.starts_with("tcp://")) {
        HOLDFAST_ASSIGN(Gate* const gate, context.impl()->TheGate());
        gate->Watch(s.handle());
      }
      s.set(zmq::sockopt::router_mandatory, true);
      s.set(zmq::sockopt::router_handover, false);
      s.bind(endpoint);
    } else {
      s.set(zmq::sockopt::immediate, true);
      s.connect(endpoint);
    }
    impl->endpoint = Reachable(s.get(zmq::sockopt::last_endpoint));
    return std::unique_ptr<Socket>(new Socket(std::move(impl)));
  } catch (const zmq::error_t& e) {
    return OpenError(e, kind, endpoint);
  }
}

bool Socket::Send(const std::vector<ByteSpan>& frames) {
  try {
    for (size_t i = 0; i < frames.size(); ++i) {
      const bool last = i + 1 == frames.size();
      const auto flags = zmq::send_flags::dontwait | (last ? zmq::send_flags::none : zmq::send_flags::sndmore);
      if (!impl_->socket.send(zmq::const_buffer(frames[i].data(), frames[i].size()), flags)) return false;
    }
    return true;
  } catch (const zmq::error_t&) {  // EHOSTUNREACH: the peer has gone
    return false;
  }
}

std::optional<std::vector<Bytes>> Socket::Receive(size_t frames_max, std::string* sender) {
  try {
    std::vector<Bytes> frames;
    zmq::message_t m;
    do {
      if (!impl_->socket.recv(m, zmq::recv_flags::dontwait)) return std::nullopt;
      if (frames.size() <= frames_max) frames.emplace_back(m.data<uint8_t>(), m.data<uint8_t>() + m.size());
      if (sender == nullptr) continue;
      const char* name = zmq_msg_gets(m.handle(), "User-Id");
      *sender = name != nullptr ? name : "";
    } while (m.more());
    if (frames.size() > frames_max) frames.clear();
    return frames;
  } catch (const zmq::error_t&) {
    return std::nullopt;
  }
}

void WaitReadable(const std::vector<Socket*>& sockets, int event_fd, int timeout_ms) {
  std::vector<zmq::pollitem_t> items;
  for (Socket* s : sockets) items.push_back({s->impl()->socket.handle(), 0, ZMQ_POLLIN, 0});
  if (event_fd >= 0) items.push_back({nullptr, event_fd, ZMQ_POLLIN, 0});
  try {
    zmq::poll(items, std::chrono::milliseconds(timeout_ms));
  } catch (const zmq::error_t&) {  // EINTR: a signal arrived; the caller looks at its flags
  }
}

}  // namespace holdfast
