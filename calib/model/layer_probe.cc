// SPDX-License-Identifier: Apache-2.0
#include "calib/model/layer_probe.h"

#include <algorithm>

namespace holdfast {
namespace {

constexpr uint64_t kDayNs = 86'400'000'000'000, kExabyte = 1'000'000'000'000'000'000;
constexpr uint32_t kTokensMax = 1u << 20, kThreadsMax = 4096;

struct Field {
  const char* name;
  uint64_t LayerProbe::* value;
  uint64_t least, most;
};
constexpr Field kFields[] = {
    {"layer_bytes", &LayerProbe::layer_bytes, 1, kExabyte}, {"load_cold_ns", &LayerProbe::load_cold_ns, 1, kDayNs},
    {"load_ns", &LayerProbe::load_ns, 1, kDayNs},           {"load_cpu_ns", &LayerProbe::load_cpu_ns, 1, kDayNs},
    {"evict_ns", &LayerProbe::evict_ns, 1, kDayNs},         {"evict_cpu_ns", &LayerProbe::evict_cpu_ns, 1, kDayNs},
    {"evict_bytes", &LayerProbe::evict_bytes, 1, kExabyte}, {"copy_bytes", &LayerProbe::copy_bytes, 1, kExabyte},
    {"copy_ns", &LayerProbe::copy_ns, 1, kDayNs},           {"rss_peak_bytes", &LayerProbe::rss_peak_bytes, 0, kExabyte},
    {"start_ns", &LayerProbe::start_ns, 0, kDayNs},
};

Result<uint64_t> Within(const Json& value, const std::string& name, uint64_t least, uint64_t most) {
  if (value.is_number_unsigned() && value.get<uint64_t>() >= least && value.get<uint64_t>() <= most) return value.get<uint64_t>();
  return InvalidArgument(name + " is not a whole number from " + std::to_string(least) + " to " + std::to_string(most));
}

}  // namespace

std::string LayerQuestion::Encode() const {
  return CanonicalJson({{"v", 1}, {"source", source}, {"device", device}, {"tokens", tokens}, {"threads", threads}, {"at_once", at_once}});
}

Result<LayerQuestion> LayerQuestion::Decode(const std::string& text) {
  const std::string what = "question of a layer's measures";
  HOLDFAST_ASSIGN(const Json j, ParseJson(text, what, 1 << 20));
  LayerQuestion q;
  HOLDFAST_ASSIGN(const uint64_t version, GetUint(j, "v", what));
  if (version != 1) return Unsupported(what + " of version " + std::to_string(version) + ": jobctl and holdfast-worker are not of one build");
  HOLDFAST_ASSIGN(q.source, GetString(j, "source", what));
  HOLDFAST_ASSIGN(q.device, GetString(j, "device", what));
  HOLDFAST_ASSIGN(const uint64_t tokens, GetUint(j, "tokens", what));
  HOLDFAST_ASSIGN(const uint64_t threads, GetUint(j, "threads", what));
  HOLDFAST_ASSIGN(const uint64_t at_once, GetUint(j, "at_once", what));
  if (tokens == 0 || tokens > kTokensMax || threads == 0 || threads > kThreadsMax || at_once == 0 || at_once > kThreadsMax) {
    return InvalidArgument(what + ": tokens, threads or at_once out of range");
  }
  q.tokens = static_cast<uint32_t>(tokens);
  q.threads = static_cast<uint32_t>(threads);
  q.at_once = static_cast<uint32_t>(at_once);
  return q;
}

Json LayerProbe::ToJson() const {
  Json j{{"forward_ns", forward_ns}};
  for (const Field& f : kFields) j[f.name] = this->*f.value;
  return j;
}

Result<LayerProbe> LayerProbe::FromJson(const Json& j, const std::string& what) {
  LayerProbe p;
  for (const Field& f : kFields) {
    if (!j.is_object() || !j.contains(f.name)) return InvalidArgument(what + ": " + f.name + " is missing");
    HOLDFAST_ASSIGN(p.*f.value, Within(j[f.name], what + ": " + f.name, f.least, f.most));
  }
  HOLDFAST_ASSIGN(const Json* times, GetArray(j, "forward_ns", what));
  if (times->empty() || times->size() > kForwardTimesMax) return InvalidArgument(what + ": forward_ns has " + std::to_string(times->size()) + " times");
  for (const Json& t : *times) {
    HOLDFAST_ASSIGN(const uint64_t ns, Within(t, what + ": a time of forward_ns", 1, kDayNs));
    p.forward_ns.push_back(ns);
  }
  std::sort(p.forward_ns.begin(), p.forward_ns.end());
  return p;
}

}  // namespace holdfast
