// SPDX-License-Identifier: Apache-2.0
#include "daemon/transport/endpoint.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>

#include <functional>
#include <memory>
#include <optional>

namespace holdfast {
namespace {

constexpr const char* kTcp = "tcp://";
constexpr const char* kExample = "10.0.0.2:7070, [fd00::2]:7070, spark1, or * for every address of this machine";

struct HostPort {
  std::string host, port;  // without brackets; port "*" or a number
};

bool IsV4(const std::string& host) {
  in_addr a{};
  return ::inet_pton(AF_INET, host.c_str(), &a) == 1;
}
bool IsV6(const std::string& host) {
  in6_addr a{};
  return ::inet_pton(AF_INET6, host.substr(0, host.find('%')).c_str(), &a) == 1;
}
bool IsLoopbackHost(const std::string& host) {
  in_addr a{};
  if (::inet_pton(AF_INET, host.c_str(), &a) == 1) return (ntohl(a.s_addr) >> 24) == 127;
  return host == "::1";
}

std::string Endpoint(const HostPort& hp) {
  const bool v6 = hp.host.find(':') != std::string::npos;
  return kTcp + (v6 ? "[" + hp.host + "]" : hp.host) + ":" + hp.port;
}

bool IsPort(const std::string& port) {
  return port == "*" || (!port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos && std::stoul(port) <= 65535);
}

// "host", "host:port", "[v6]", "[v6]:port", "v6".
std::optional<HostPort> Split(const std::string& text) {
  HostPort hp{text, "*"};
  std::string rest;
  if (text.starts_with("[")) {
    const size_t close = text.find(']');
    if (close == std::string::npos || !IsV6(text.substr(1, close - 1))) return std::nullopt;
    hp.host = text.substr(1, close - 1);
    rest = text.substr(close + 1);
  } else if (!IsV6(text)) {
    hp.host = text.substr(0, text.find(':'));
    rest = text.substr(hp.host.size());
  }
  if (!rest.empty()) {
    if (rest[0] != ':') return std::nullopt;
    hp.port = rest.substr(1);
  }
  if (hp.host.empty() || !IsPort(hp.port)) return std::nullopt;
  return hp;
}

std::optional<std::string> Numeric(const sockaddr* address) {
  char host[NI_MAXHOST];
  if (address == nullptr || (address->sa_family != AF_INET && address->sa_family != AF_INET6)) return std::nullopt;
  const socklen_t len = address->sa_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  if (::getnameinfo(address, len, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) != 0) return std::nullopt;
  return std::string(host);
}

// The first address of the interfaces that `wanted` takes; IPv4 before IPv6, link-local ones last.
std::optional<std::string> InterfaceAddress(const std::function<bool(const ifaddrs&)>& wanted) {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return std::nullopt;
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, ::freeifaddrs);
  std::optional<std::string> best;
  int best_rank = 3;
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if ((i->ifa_flags & IFF_UP) == 0 || !wanted(*i)) continue;
    const auto host = Numeric(i->ifa_addr);
    if (!host) continue;
    const bool link_local = host->starts_with("169.254.") || host->starts_with("fe80:");
    const int rank = link_local ? 2 : IsV4(*host) ? 0 : 1;
    if (rank < best_rank) best = host, best_rank = rank;
  }
  return best;
}

Result<std::string> Resolve(const std::string& name) {
  if (const auto own = InterfaceAddress([&](const ifaddrs& i) { return name == i.ifa_name; })) return *own;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int rc = ::getaddrinfo(name.c_str(), nullptr, &hints, &found); rc != 0) {
    return InvalidArgument("cannot listen on \"" + name + "\": no interface and no host of that name (" + ::gai_strerror(rc) + "); say e.g. " + kExample);
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  std::string loopback;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    const auto host = Numeric(a->ai_addr);
    if (host && !IsLoopbackHost(*host)) return *host;
    if (host && loopback.empty()) loopback = *host;
  }
  // Many distributions give the machine's own name an address of 127.0.1.1, where no other node can reach it.
  return InvalidArgument("cannot listen on \"" + name + "\": here that name means " + loopback + ", which other machines cannot reach; give the address itself (ip -br addr)");
}

}  // namespace

bool IsLoopback(const std::string& endpoint) {
  if (endpoint.starts_with("ipc://") || endpoint.starts_with("inproc://")) return true;
  if (!endpoint.starts_with(kTcp)) return false;
  const auto hp = Split(endpoint.substr(6));  // no host with ';' in it: "tcp://127.0.0.1:0;10.0.0.2:5" connects from there to the second
  return hp && IsLoopbackHost(hp->host);
}

Result<std::string> ParseListen(const std::string& address) {
  auto hp = Split(address.starts_with(kTcp) ? address.substr(6) : address);
  if (!hp) return InvalidArgument("cannot listen on \"" + address + "\": say e.g. " + kExample);
  if (hp->port == "0") hp->port = "*";
  if (hp->host == "localhost") hp->host = "127.0.0.1";
  if (hp->host != "*" && !IsV4(hp->host) && !IsV6(hp->host)) {
    HOLDFAST_ASSIGN(hp->host, Resolve(hp->host));
  }
  return Endpoint(*hp);
}

std::string Reachable(const std::string& bound) {
  if (!bound.starts_with("tcp://0.0.0.0:") && !bound.starts_with("tcp://[::]:")) return bound;
  const auto host = InterfaceAddress([](const ifaddrs& i) { return (i.ifa_flags & IFF_LOOPBACK) == 0; });
  return Endpoint({host.value_or("127.0.0.1"), bound.substr(bound.rfind(':') + 1)});
}

}  // namespace holdfast
