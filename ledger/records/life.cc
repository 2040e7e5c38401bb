// SPDX-License-Identifier: Apache-2.0
//
// Records about the life of streams: who, since when, doing what.
#include <string_view>

#include "ledger/records/fields.h"
#include "ledger/records/records.h"

namespace holdfast {

static bool IsZ85Key(const std::string& key) {
  constexpr std::string_view kAlphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
  return key.size() == 40 && key.find_first_not_of(kAlphabet) == std::string::npos;
}

// What later versions added is written only where it says something, so that the records of `jobctl run` stay as they were.
Json Incarnation::ToJson() const {
  Json j = {{"node", node}, {"nonce", nonce.Hex()}, {"hostname", hostname}, {"machine_id", machine_id}, {"boot_id", boot_id},
            {"binary", binary}, {"device", device}, {"endpoint", endpoint}, {"pid", pid}, {"start_ticks", start_ticks}};
  for (const auto& [key, value] : {std::pair("public_key", &public_key), std::pair("version", &version), std::pair("numerics", &numerics)}) {
    if (!value->empty()) j[key] = *value;
  }
  for (const auto& [key, value] : {std::pair("memory_bytes", memory_bytes), std::pair("speed", speed), std::pair("threads", threads)}) {
    if (value != 0) j[key] = value;
  }
  return j;
}

Result<Incarnation> Incarnation::FromJson(const Json& j) {
  Incarnation i;
  Fields f(j, "incarnation record");
  f.Get("node", &i.node).Get("nonce", &i.nonce).Get("hostname", &i.hostname).Get("machine_id", &i.machine_id)
      .Get("boot_id", &i.boot_id).Get("binary", &i.binary).Get("device", &i.device).Get("endpoint", &i.endpoint)
      .Get("pid", &i.pid).Get("start_ticks", &i.start_ticks);
  f.Optional("public_key", &i.public_key).Optional("version", &i.version).Optional("numerics", &i.numerics)
      .Optional("memory_bytes", &i.memory_bytes).Optional("speed", &i.speed).Optional("threads", &i.threads);
  for (const auto& [key, value] : {std::pair("node", &i.node), std::pair("hostname", &i.hostname), std::pair("machine_id", &i.machine_id),
                                   std::pair("boot_id", &i.boot_id), std::pair("binary", &i.binary), std::pair("device", &i.device),
                                   std::pair("endpoint", &i.endpoint), std::pair("version", &i.version), std::pair("numerics", &i.numerics)}) {
    f.AtMost(key, *value, kPathBytesMax);
  }
  if (!i.public_key.empty() && !IsZ85Key(i.public_key)) f.Fail("field \"public_key\" is not a Z85 key of 40 characters");
  HOLDFAST_TRY(f.status());
  return i;
}

Json Claim::ToJson() const {
  return {{"epoch", epoch}, {"incarnation", incarnation.Hex()}, {"node", node}, {"reason", reason}, {"pid", pid}, {"numerics", numerics}};
}
Result<Claim> Claim::FromJson(const Json& j) {
  Claim c;
  HOLDFAST_TRY(Fields(j, "claim record").Get("epoch", &c.epoch).Get("incarnation", &c.incarnation).Get("node", &c.node)
      .Get("reason", &c.reason).Get("pid", &c.pid).Get("numerics", &c.numerics).status());
  return c;
}

Json Release::ToJson() const { return {{"epoch", epoch}, {"reason", reason}}; }
Result<Release> Release::FromJson(const Json& j) {
  Release r;
  HOLDFAST_TRY(Fields(j, "release record").Get("epoch", &r.epoch).Get("reason", &r.reason).status());
  return r;
}

Json PhaseBegin::ToJson() const {
  Json j{{"phase", phase}, {"attempt", attempt}, {"window", window}, {"threads", threads}, {"planned_bytes", planned_bytes}, {"available_bytes", available_bytes}};
  if (layers != 0) j["layers"] = layers;
  if (sample) j["sample"] = *sample;
  if (!why.empty()) j["why"] = why;
  return j;
}
Result<PhaseBegin> PhaseBegin::FromJson(const Json& j) {
  PhaseBegin p;
  uint32_t sample = 0;
  HOLDFAST_TRY(Fields(j, "phase record").Get("phase", &p.phase).Get("attempt", &p.attempt).Get("window", &p.window)
      .Get("threads", &p.threads).Get("planned_bytes", &p.planned_bytes).Get("available_bytes", &p.available_bytes)
      .Optional("layers", &p.layers).Optional("sample", &sample).Optional("why", &p.why).AtMost("why", p.why, kTextBytesMax).status());
  if (j.contains("sample")) p.sample = sample;
  return p;
}

Json OmitRecord::ToJson() const { return {{"sample", sample}, {"stage", stage.value}, {"why", why}}; }
Result<OmitRecord> OmitRecord::FromJson(const Json& j) {
  OmitRecord o;
  HOLDFAST_TRY(Fields(j, "omission record").Get("sample", &o.sample).Get("stage", &o.stage.value).Get("why", &o.why)
      .AtMost("why", o.why, kTextBytesMax).status());
  return o;
}

Json SourceRead::ToJson() const {
  Json list = Json::array();
  for (const auto& [name, digest] : tensors) list.push_back(Json::array({name, digest.Hex()}));
  return {{"unit", unit}, {"tensors", std::move(list)}};
}
Result<SourceRead> SourceRead::FromJson(const Json& j) {
  SourceRead s;
  Fields f(j, "source record");
  f.Get("unit", &s.unit).Array("tensors", &s.tensors, [&](const Json& v, std::pair<std::string, Digest>* t) {
    if (!v.is_array() || v.size() != 2) return f.Fail("field \"tensors\" is not a list of [name, digest]").status();
    f.Value(v[0], "tensors", &t->first);
    f.Value(v[1], "tensors", &t->second);
    return f.status();
  });
  HOLDFAST_TRY(f.status());
  return s;
}

}  // namespace holdfast
