// SPDX-License-Identifier: Apache-2.0
#include "daemon/transport/sockets.h"

#include <zmq.hpp>

namespace holdfast {

struct Context::Impl {
  zmq::context_t context{1};
};
Context::Context() : impl_(std::make_unique<Impl>()) {}
Context::~Context() = default;

struct Socket::Impl {
  zmq::socket_t socket;
  std::string endpoint;
};
Socket::Socket(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Socket::~Socket() = default;
std::string Socket::endpoint() const { return impl_->endpoint; }

Result<std::unique_ptr<Socket>> Socket::Open(Context& context, Kind kind, const std::string& endpoint, size_t max_message_bytes,
                                             int linger_ms, const SocketSecurity& security) {
  try {
    auto impl = std::make_unique<Impl>();
    impl->socket = zmq::socket_t(context.impl()->context, kind == Kind::kRouter ? zmq::socket_type::router : zmq::socket_type::dealer);
    zmq::socket_t& s = impl->socket;
    s.set(zmq::sockopt::linger, linger_ms);
    s.set(zmq::sockopt::ipv6, 1);
    if (!security.self.secret_key.empty()) {
      s.set(zmq::sockopt::curve_publickey, security.self.public_key);
      s.set(zmq::sockopt::curve_secretkey, security.self.secret_key);
      if (kind == Kind::kRouter) s.set(zmq::sockopt::curve_server, 1);
      else s.set(zmq::sockopt::curve_serverkey, security.server_key);
    }
    s.set(zmq::sockopt::maxmsgsize, static_cast<int64_t>(max_message_bytes));
    s.set(zmq::sockopt::sndhwm, 64);
    s.set(zmq::sockopt::rcvhwm, 64);
    s.set(zmq::sockopt::reconnect_ivl, 200);
    s.set(zmq::sockopt::reconnect_ivl_max, 5000);
    s.set(zmq::sockopt::heartbeat_ivl, 2000);
    s.set(zmq::sockopt::heartbeat_timeout, 6000);
    if (kind == Kind::kRouter) {
      s.set(zmq::sockopt::router_mandatory, 1);
      s.bind(endpoint);
    } else {
      s.set(zmq::sockopt::immediate, 1);
      s.connect(endpoint);
    }
    impl->endpoint = s.get(zmq::sockopt::last_endpoint);
    return std::unique_ptr<Socket>(new Socket(std::move(impl)));
  } catch (const zmq::error_t& e) {
    return Internal("ZeroMQ socket at " + endpoint + ": " + e.what());
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

std::optional<std::vector<Bytes>> Socket::Receive(size_t frames_max) {
  try {
    std::vector<Bytes> frames;
    for (;;) {
      zmq::message_t m;
      if (!impl_->socket.recv(m, zmq::recv_flags::dontwait)) return std::nullopt;
      if (frames.size() <= frames_max) frames.emplace_back(m.data<uint8_t>(), m.data<uint8_t>() + m.size());
      if (m.more()) continue;
      if (frames.size() <= frames_max) return frames;
      frames.clear();  // too many frames: not ours, look at the next message
    }
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
