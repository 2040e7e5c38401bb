// SPDX-License-Identifier: Apache-2.0
#include "daemon/transport/gate.h"

#include <arpa/inet.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <zmq.hpp>

#include "daemon/transport/keys.h"
#include "ledger/base/clock.h"

namespace holdfast {
namespace {

constexpr const char* kZapEndpoint = "inproc://zeromq.zap.01";
constexpr uint64_t kRereadNs = 1'000'000'000;
constexpr auto kRereadWait = std::chrono::milliseconds(250);
constexpr size_t kNamesMax = 8;
constexpr int kFailures = ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;

// The keys of one directory. It is read by a thread of its own, because it lies on the shared file system and that may hang; who is
// known from the last time is let in all the same.
class KeyRing : public std::enable_shared_from_this<KeyRing> {
 public:
  explicit KeyRing(std::string dir) : dir_(std::move(dir)) {}
  // Name of the key's owner. Looks at the directory again, at most once a second.
  std::optional<std::string> Owner(const std::string& key) {
    std::unique_lock lock(mutex_);
    if (!reading_ && (read_ns_ == 0 || clock_.MonotonicNs() - read_ns_ >= kRereadNs)) StartReading();
    read_.wait_for(lock, kRereadWait, [this] { return !reading_; });
    const auto it = keys_.find(key);
    if (it == keys_.end()) return std::nullopt;
    return it->second;
  }
  std::string error() {
    std::lock_guard lock(mutex_);
    return error_;
  }

 private:
  void StartReading() {
    try {
      std::thread([self = shared_from_this()] { self->Read(); }).detach();
      reading_ = true;
    } catch (const std::system_error&) {  // no thread to be had: the next knock tries again
    }
  }
  void Read() {
    auto keys = AllowedKeys(dir_);
    std::lock_guard lock(mutex_);
    if (keys.ok()) keys_ = std::move(*keys);
    else if (keys.code() == ErrorCode::kNotFound) keys_.clear();
    error_ = keys.ok() ? "" : keys.error().message;
    read_ns_ = clock_.MonotonicNs();
    reading_ = false;
    read_.notify_all();
  }
  const std::string dir_;
  const RealClock clock_;
  std::mutex mutex_;
  std::condition_variable read_;
  std::map<std::string, std::string> keys_;  // guarded by mutex_, as is what follows
  std::string error_;
  bool reading_ = false;
  uint64_t read_ns_ = 0;
};

std::string AddressOf(int fd) {
  sockaddr_storage a{};
  socklen_t len = sizeof(a);
  char text[INET6_ADDRSTRLEN] = "";
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&a), &len) != 0) return "somebody who left at once";
  if (a.ss_family == AF_INET) ::inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(&a)->sin_addr, text, sizeof(text));
  if (a.ss_family == AF_INET6) ::inet_ntop(AF_INET6, &reinterpret_cast<sockaddr_in6*>(&a)->sin6_addr, text, sizeof(text));
  return text[0] != '\0' ? text : "a local process";
}

// What a listener's monitor tells. The descriptor of a connection names the address while it is open; a failure comes just before the
// disconnection that it causes; greetings that are no ZMTP at all are closed without one.
struct Watched {
  struct Caller {
    std::string address;
    uint64_t successes = 0;          // of the listener, when this one called
  };
  zmq::socket_t events;
  std::map<uint32_t, Caller> callers;  // by descriptor
  uint64_t successes = 0;
  std::optional<std::string> failure;  // why the next disconnection happens; "": not worth a word, or counted already
};

// A peer that goes away while it shakes hands has done no wrong: it was stopped, or it only looked whether the port is open.
std::string FailureOf(uint16_t event, uint32_t value) {
  if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL) return "no keys, or meant for another server";
  if (event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL && value == EAGAIN) return "no handshake in time";
  return "";
}

}  // namespace

struct Gate::Impl {
  zmq::context_t* context = nullptr;  // not owned: see Start
  zmq::socket_t zap;
  int wake_fd = -1;
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<KeyRing>> rings;  // by domain; guarded by mutex, as is what follows
  std::map<std::string, std::string> domains;             // by directory
  std::vector<Watched> arriving;
  uint64_t watch_count = 0;
  Refused refused;
  std::thread thread;

  ~Impl() {
    stopping = true;
    Wake();
    if (thread.joinable()) thread.join();
    if (wake_fd >= 0) ::close(wake_fd);
  }
  void Wake() {
    const uint64_t one = 1;
    (void)!::write(wake_fd, &one, sizeof(one));
  }
  void Refuse(const std::string& address, const std::string& why) {
    const std::string name = address + " (" + why + ")";
    std::lock_guard lock(mutex);
    ++refused.count;
    std::erase(refused.names, name);
    refused.names.push_back(name);
    if (refused.names.size() > kNamesMax) refused.names.erase(refused.names.begin());
  }

  void Run() {
    std::vector<Watched> watched;
    try {
      while (!stopping) {
        std::vector<zmq::pollitem_t> items = {{zap.handle(), 0, ZMQ_POLLIN, 0}, {nullptr, wake_fd, ZMQ_POLLIN, 0}};
        for (Watched& w : watched) items.push_back({w.events.handle(), 0, ZMQ_POLLIN, 0});
        try {
          zmq::poll(items, std::chrono::milliseconds(-1));
        } catch (const zmq::error_t& e) {
          if (e.num() == EINTR) continue;
          return;
        }
        uint64_t ignored;
        if (items[1].revents != 0) (void)!::read(wake_fd, &ignored, sizeof(ignored));
        if (items[0].revents != 0) AnswerZap();
        std::erase_if(watched, [this](Watched& w) { return !Drain(&w); });
        std::lock_guard lock(mutex);
        for (Watched& w : arriving) watched.push_back(std::move(w));
        arriving.clear();
      }
    } catch (const zmq::error_t&) {  // the context is ending
    }
    zap.close();
  }

  // One request: version, request id, domain, address, routing id, mechanism, credentials (RFC 27).
  void AnswerZap() {
    std::vector<zmq::message_t> in;
    zmq::message_t m;
    do {
      if (!zap.recv(m, zmq::recv_flags::dontwait)) return;
      in.push_back(std::move(m));
    } while (in.back().more());
    std::optional<std::string> owner;
    if (in.size() == 7 && in[0].to_string() == "1.0" && in[5].to_string() == "CURVE" && in[6].size() == 32) {
      owner = Owner(in[2].to_string(), in[3].to_string(), in[6]);
    }
    // 300 and not 400: who is turned away for good never comes again, not even after it has been enrolled.
    const std::string reply[] = {"1.0", in.size() > 1 ? in[1].to_string() : "", owner ? "200" : "300", owner ? "OK" : "not enrolled", owner.value_or(""), ""};
    for (size_t i = 0; i < std::size(reply); ++i) {
      zap.send(zmq::buffer(reply[i]), i + 1 < std::size(reply) ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
  }

  std::optional<std::string> Owner(const std::string& domain, const std::string& address, const zmq::message_t& raw_key) {
    std::shared_ptr<KeyRing> ring;
    {
      std::lock_guard lock(mutex);
      if (const auto it = rings.find(domain); it != rings.end()) ring = it->second;
    }
    char key[41] = "";
    zmq_z85_encode(key, raw_key.data<uint8_t>(), raw_key.size());
    auto owner = ring ? ring->Owner(key) : std::nullopt;
    if (owner) return owner;
    const std::string error = ring ? ring->error() : "no such domain";
    Refuse(address, error.empty() ? "unknown key" : "keys cannot be read: " + error);
    return std::nullopt;
  }

  // false: its listener has been closed.
  bool Drain(Watched* w) {
    zmq::message_t what, where;
    while (w->events.recv(what, zmq::recv_flags::dontwait)) {
      if (!what.more() || !w->events.recv(where, zmq::recv_flags::dontwait) || what.size() != 6) return false;
      uint16_t event;
      uint32_t value;
      std::memcpy(&event, what.data(), 2);
      std::memcpy(&value, what.data<uint8_t>() + 2, 4);
      if (event == ZMQ_EVENT_MONITOR_STOPPED) return false;
      OnEvent(w, event, value);
    }
    return true;
  }

  void OnEvent(Watched* w, uint16_t event, uint32_t value) {
    if (event == ZMQ_EVENT_ACCEPTED) w->callers[value] = {AddressOf(static_cast<int>(value)), w->successes};
    if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) ++w->successes;
    if ((event & kFailures) != 0) w->failure = FailureOf(event, value);
    if (event != ZMQ_EVENT_DISCONNECTED) return;
    const Watched::Caller caller = std::exchange(w->callers[value], {});
    w->callers.erase(value);
    if (!w->failure && !caller.address.empty() && caller.successes == w->successes) w->failure = "not ZeroMQ";
    if (w->failure && !w->failure->empty()) Refuse(caller.address, *w->failure);
    w->failure.reset();
  }
};

Gate::Gate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gate::~Gate() = default;

Result<std::unique_ptr<Gate>> Gate::Start(void* zmq_context) {
  auto impl = std::make_unique<Impl>();
  impl->wake_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (impl->wake_fd < 0) return ErrnoError(errno, "making an eventfd");
  try {
    impl->context = static_cast<zmq::context_t*>(zmq_context);
    impl->zap = zmq::socket_t(*impl->context, zmq::socket_type::rep);
    impl->zap.set(zmq::sockopt::linger, 0);
    impl->zap.bind(kZapEndpoint);
    impl->thread = std::thread([i = impl.get()] { i->Run(); });
  } catch (const std::exception& e) {
    return Internal(std::string("cannot start the authentication of sockets: ") + e.what());
  }
  return std::unique_ptr<Gate>(new Gate(std::move(impl)));
}

std::string Gate::Domain(const std::string& keys_dir) {
  std::lock_guard lock(impl_->mutex);
  auto [it, fresh] = impl_->domains.try_emplace(keys_dir, "holdfast." + std::to_string(impl_->domains.size()));
  if (fresh) impl_->rings[it->second] = std::make_shared<KeyRing>(keys_dir);
  return it->second;
}

void Gate::Watch(void* zmq_socket) {
  Watched w;
  std::string endpoint;
  {
    std::lock_guard lock(impl_->mutex);
    endpoint = "inproc://holdfast.watch." + std::to_string(impl_->watch_count++);
  }
  constexpr int kEvents = ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED | kFailures | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_MONITOR_STOPPED;
  if (zmq_socket_monitor(zmq_socket, endpoint.c_str(), kEvents) != 0) return;
  w.events = zmq::socket_t(*impl_->context, zmq::socket_type::pair);
  w.events.set(zmq::sockopt::linger, 0);
  w.events.set(zmq::sockopt::rcvhwm, 0);  // a full monitor would block ZeroMQ's I/O thread
  w.events.connect(endpoint);             // before there is anything to tell: a monitor that nobody hears blocks it too
  std::lock_guard lock(impl_->mutex);
  impl_->arriving.push_back(std::move(w));
  impl_->Wake();
}

void Gate::Unwatch(void* zmq_socket) { (void)zmq_socket_monitor(zmq_socket, nullptr, 0); }

Refused Gate::refused() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->refused;
}

}  // namespace holdfast
