// SPDX-License-Identifier: Apache-2.0
#include "daemon/wire/beat.h"

#include <algorithm>
#include <limits>

#include "daemon/wire/messages.h"
#include "ledger/base/json.h"

namespace holdfast {
namespace {

constexpr size_t kWordMax = 32, kNameMax = 64, kLineMax = 256, kErrorMax = 640, kKeyChars = 40, kJobChars = 12;

const char* const kKinds[] = {"beat", "hint", "ask_beats", "beats"};

bool IsHex(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
bool IsJob(std::string_view s) { return s.size() == kJobChars && IsHex(s); }

bool IsName(std::string_view s) {
  const auto alnum = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !s.empty() && s.size() <= kNameMax && alnum(s[0]) &&
         std::all_of(s.begin(), s.end(), [&](char c) { return alnum(c) || c == '_' || c == '.' || c == '-'; });
}

// Length of the control character at s[i], 0 if there is none: C0, DEL, and C1 as UTF-8. People read these strings on terminals.
size_t ControlAt(std::string_view s, size_t i) {
  const auto c = static_cast<uint8_t>(s[i]);
  if (c < 0x20 || c == 0x7f) return 1;
  return c == 0xc2 && i + 1 < s.size() && static_cast<uint8_t>(s[i + 1]) < 0xa0 ? 2 : 0;
}

bool HasControl(std::string_view s) {
  for (size_t i = 0; i < s.size(); ++i) {
    if (ControlAt(s, i) != 0) return true;
  }
  return false;
}

// What any string becomes before it is sent: valid UTF-8, one line, at most `max` bytes, so that every beat that is encoded decodes.
std::string Clean(const std::string& text, size_t max) {
  std::string s = text.substr(0, 4 * max);
  if (!std::all_of(s.begin(), s.end(), [](char c) { return c >= 0x20 && c < 0x7f; })) {
    const auto valid = ParseJson(CanonicalJson(Json(s)), "text");  // what is not UTF-8 was replaced
    s = valid.ok() ? valid->get<std::string>() : "?";
    for (size_t i = 0; i < s.size(); ++i) {
      if (const size_t n = ControlAt(s, i); n != 0) s.replace(i, n, 1, ' ');
    }
  }
  if (s.size() <= max) return s;
  size_t end = max;
  while (end > 0 && (static_cast<uint8_t>(s[end]) & 0xc0) == 0x80) --end;
  s.resize(end);
  return s;
}

// Writer and Reader walk the same list of fields (Fields below), so that what one writes the other reads, under the same bounds.
class Writer {
 public:
  template <class T>
  void Uint(const char* key, const T& value, uint64_t max = std::numeric_limits<T>::max()) {
    j_[key] = value < T{} ? 0 : std::min(static_cast<uint64_t>(value), max);
  }
  void OptionalUint(const char* key, const uint64_t& value) {
    if (value != 0) Uint(key, value);
  }
  void Bool(const char* key, const bool& value) { j_[key] = value; }
  void Text(const char* key, const std::string& value, size_t max) { j_[key] = Clean(value, max); }
  void OptionalText(const char* key, const std::string& value, size_t max) {
    if (!value.empty()) Text(key, value, max);
  }
  void Name(const char* key, const std::string& value) { j_[key] = Clean(value, kNameMax); }
  void Job(const char* key, const std::string& value) { j_[key] = Clean(value, kJobChars); }
  void Key(const char* key, const std::string& value) { j_[key] = value.size() == kKeyChars ? Clean(value, kKeyChars) : ""; }
  void Id(const char* key, const Nonce& value) { j_[key] = value.Hex(); }
  void Texts(const char* key, const std::vector<std::string>& list, size_t count_max, size_t max) {
    Json a = Json::array();
    for (size_t i = 0; i < std::min(list.size(), count_max); ++i) a.push_back(Clean(list[i], max));
    j_[key] = std::move(a);
  }
  Json Take() { return std::move(j_); }
  Json& json() { return j_; }

 private:
  Json j_ = Json::object();
};

class Reader {
 public:
  Reader(const Json& j, const char* what) : j_(j), what_(what) {}
  template <class T>
  void Uint(const char* key, T& out, uint64_t max = std::numeric_limits<T>::max()) {
    const uint64_t v = Take(GetUint(j_, key, what_));
    if (v > max) Fail(key, "out of range");
    else out = static_cast<T>(v);
  }
  void OptionalUint(const char* key, uint64_t& out) {
    if (j_.is_object() && j_.contains(key)) Uint(key, out);
  }
  void Bool(const char* key, bool& out) { out = Take(GetBool(j_, key, what_)); }
  void Text(const char* key, std::string& out, size_t max) {
    out = Take(GetString(j_, key, what_));
    if (out.size() > max || HasControl(out)) Fail(key, "too long or not one line");
  }
  void OptionalText(const char* key, std::string& out, size_t max) {
    if (j_.is_object() && j_.contains(key)) Text(key, out, max);
  }
  void Name(const char* key, std::string& out) {
    Text(key, out, kNameMax);
    if (!IsName(out)) Fail(key, "not a name");
  }
  void Job(const char* key, std::string& out) {
    Text(key, out, kJobChars);
    if (!IsJob(out)) Fail(key, "not a job id");
  }
  void Key(const char* key, std::string& out) {
    Text(key, out, kKeyChars);
    if (!out.empty() && out.size() != kKeyChars) Fail(key, "not a key");
  }
  void Id(const char* key, Nonce& out) {
    const std::string hex = Take(GetString(j_, key, what_));
    if (!IsHex(hex) || !Nonce::FromHex(hex, &out)) Fail(key, "not 32 hexadecimal digits");
  }
  void Texts(const char* key, std::vector<std::string>& out, size_t count_max, size_t max) {
    const Json* a = Array(key, count_max);
    for (size_t i = 0; a != nullptr && i < a->size(); ++i) {
      const Json& v = (*a)[i];
      if (!v.is_string() || v.get_ref<const std::string&>().size() > max || HasControl(v.get_ref<const std::string&>())) {
        return Fail(key, "not a list of short strings");
      }
      out.push_back(v.get<std::string>());
    }
  }
  const Json* Array(const char* key, size_t count_max) {
    const Json* a = Take(GetArray(j_, key, what_));
    if (a != nullptr && a->size() <= count_max) return a;
    Fail(key, "too long");
    return nullptr;
  }
  void Fail(const char* key, const char* why) {
    if (status_.ok()) status_ = Corrupt(std::string(what_) + ": field \"" + key + "\" is " + why);
  }
  const Status& status() const { return status_; }

 private:
  template <class T>
  T Take(Result<T> value) {
    if (value.ok()) return std::move(value).value();
    if (status_.ok()) status_ = Corrupt(value.error().message);
    return T{};
  }
  const Json& j_;
  const char* what_;
  Status status_;
};

template <class Coder, class T>
void TaskFields(Coder& c, T& t) {
  c.Job("job", t.job);
  c.Uint("stage", t.stage);
  c.Text("state", t.state, kWordMax);
  c.Text("phase", t.phase, kWordMax);
  c.Uint("samples_done", t.samples_done);
  c.Uint("samples_total", t.samples_total);
  c.Uint("units_done", t.units_done);
  c.Uint("units_total", t.units_total);
  c.Uint("bytes_read", t.bytes_read);
  c.Uint("bytes_written", t.bytes_written);
  c.Uint("bytes_total", t.bytes_total);
  c.Uint("rss_bytes", t.rss_bytes);
  c.Uint("rss_peak_bytes", t.rss_peak_bytes);
  c.Uint("planned_bytes", t.planned_bytes);
  c.Uint("cuts_received", t.cuts_received);
  c.Uint("cuts_from_packs", t.cuts_from_packs);
  c.Uint("chunks_dropped", t.chunks_dropped);
  c.Uint("window", t.window);
  c.Uint("threads", t.threads);
  c.Uint("restarts", t.restarts);
  c.Uint("out_of_memory", t.out_of_memory);
  c.Uint("pid", t.pid);
  c.Text("last_death", t.last_death, kNameMax);
  c.Text("error_code", t.error_code, kWordMax);
  c.Text("error", t.error, kErrorMax);
  c.OptionalText("device", t.device, kWordMax);
}

template <class Coder, class D>
void DeviceFields(Coder& c, D& d) {
  c.Text("name", d.name, kWordMax);
  c.Text("numerics", d.numerics, kLineMax);
  c.Uint("memory_bytes", d.memory_bytes);
  c.Uint("speed", d.speed);
  c.OptionalUint("host_bytes", d.host_bytes);
}

template <class Coder, class B>
void BeatFields(Coder& c, B& b) {
  c.Id("root", b.root);
  c.Name("node", b.node);
  c.Id("incarnation", b.incarnation);
  c.Uint("count", b.count);
  c.Uint("wall_ns", b.wall_ns);
  c.Text("hostname", b.hostname, kLineMax);
  c.Text("endpoint", b.endpoint, kLineMax);
  c.Key("public_key", b.public_key);
  c.Text("version", b.version, kNameMax);
  c.Text("numerics", b.numerics, kLineMax);
  c.Text("device", b.device, kLineMax);
  c.Uint("pid", b.pid);
  c.Uint("memory_bytes", b.memory_bytes);
  c.Uint("memory_planned", b.memory_planned);
  c.Uint("memory_available", b.memory_available);
  c.OptionalUint("host_bytes", b.host_bytes);
  c.Uint("rss_bytes", b.rss_bytes);
  c.Uint("speed", b.speed);
  c.Uint("threads", b.threads);
  c.Uint("pressure", b.pressure, 10'000);
  c.Bool("draining", b.draining);
  c.Bool("paused", b.paused);
  c.Uint("storage_stalled_ms", b.storage_stalled_ms);
  c.Texts("coordinates", b.coordinates, kBeatJobsMax, kJobChars);
  c.Texts("warnings", b.warnings, kBeatWarningsMax, kLineMax);
}

// What a full beat keeps when there are more tasks than it may carry: those that are not done.
std::vector<const TaskBeat*> TasksToSend(const Beat& beat) {
  std::vector<const TaskBeat*> tasks;
  for (const TaskBeat& t : beat.tasks) tasks.push_back(&t);
  if (tasks.size() > kBeatTasksMax) {
    std::stable_partition(tasks.begin(), tasks.end(), [](const TaskBeat* t) { return t->state != "done"; });
    tasks.resize(kBeatTasksMax);
  }
  return tasks;
}

Json BeatToJson(const Beat& beat) {
  Writer w;
  BeatFields(w, beat);
  Json tasks = Json::array();
  for (const TaskBeat* t : TasksToSend(beat)) {
    Writer task;
    TaskFields(task, *t);
    tasks.push_back(task.Take());
  }
  w.json()["tasks"] = std::move(tasks);
  Json devices = Json::array();
  for (size_t i = 0; i < std::min(beat.devices.size(), kBeatDevicesMax); ++i) {
    Writer device;
    DeviceFields(device, beat.devices[i]);
    devices.push_back(device.Take());
  }
  if (!devices.empty()) w.json()["devices"] = std::move(devices);
  w.json()["v"] = kWireVersion;
  return w.Take();
}

Status CheckVersion(const Json& j, const char* what) {
  const auto version = GetUint(j, "v", what);
  if (!version.ok()) return Corrupt(version.error().message);
  if (*version != kWireVersion) return Unsupported(std::string(what) + " of wire version " + std::to_string(*version));
  return OkStatus();
}

Result<Beat> BeatFromJson(const Json& j) {
  HOLDFAST_TRY(CheckVersion(j, "beat"));
  Beat b;
  Reader r(j, "beat");
  BeatFields(r, b);
  for (const std::string& job : b.coordinates) {
    if (!IsJob(job)) r.Fail("coordinates", "not a list of job ids");
  }
  const Json* tasks = r.Array("tasks", kBeatTasksMax);
  HOLDFAST_TRY(r.status());
  for (const Json& t : *tasks) {
    Reader task(t, "task of a beat");
    TaskFields(task, b.tasks.emplace_back());
    HOLDFAST_TRY(task.status());
  }
  if (!j.contains("devices")) return b;
  const Json* devices = r.Array("devices", kBeatDevicesMax);
  HOLDFAST_TRY(r.status());
  for (const Json& d : *devices) {
    Reader device(d, "device of a beat");
    DeviceFields(device, b.devices.emplace_back());
    HOLDFAST_TRY(device.status());
  }
  return b;
}

Result<Json> ParseWire(std::string_view text, const char* what, size_t bytes_max) {
  auto j = ParseJson(text, what, bytes_max);
  if (!j.ok()) return Corrupt(j.error().message);
  return j;
}

}  // namespace

std::string Beat::Encode() const { return CanonicalJson(BeatToJson(*this)); }

Result<Beat> Beat::Decode(std::string_view text) {
  HOLDFAST_ASSIGN(const Json j, ParseWire(text, "beat", kBeatBytesMax));
  return BeatFromJson(j);
}

std::string ControlMessage::Encode() const {
  Json list = Json::array();
  size_t bytes = kBeatBytesMax / 4;   // of the bound, kept free for the frame around the beats
  for (size_t i = 0; i < std::min(beats.size(), kBeatsMax); ++i) {
    Json beat = BeatToJson(beats[i]);
    bytes += CanonicalJson(beat).size() + 1;
    if (bytes > kControlBytesMax) break;
    list.push_back(std::move(beat));
  }
  return CanonicalJson(Json{{"v", kWireVersion},
                            {"kind", kKinds[static_cast<int>(kind)]},
                            {"root", root.Hex()},
                            {"job", Clean(job, kJobChars)},
                            {"stream", Clean(stream, 2 * kNameMax)},
                            {"beats", std::move(list)}});
}

Result<ControlMessage> ControlMessage::Decode(std::string_view text) {
  HOLDFAST_ASSIGN(const Json j, ParseWire(text, "control message", kControlBytesMax));
  HOLDFAST_TRY(CheckVersion(j, "control message"));
  ControlMessage m;
  Reader r(j, "control message");
  std::string kind;
  r.Text("kind", kind, kWordMax);
  r.Id("root", m.root);
  r.Text("job", m.job, kJobChars);
  r.Text("stream", m.stream, 2 * kNameMax);
  const Json* beats = r.Array("beats", kBeatsMax);
  HOLDFAST_TRY(r.status());
  const auto* known = std::find(std::begin(kKinds), std::end(kKinds), kind);
  if (known == std::end(kKinds)) return Unsupported("control message of unknown kind \"" + kind + "\"");
  m.kind = static_cast<Kind>(known - std::begin(kKinds));
  if (!m.job.empty() && !IsJob(m.job)) return Corrupt("control message: field \"job\" is not a job id");
  const bool count_ok = m.kind == Kind::kBeat ? beats->size() == 1 : m.kind == Kind::kBeats || beats->empty();
  if (!count_ok) return Corrupt("control message: " + std::to_string(beats->size()) + " beats in one of kind \"" + kind + "\"");
  for (const Json& beat : *beats) {
    HOLDFAST_ASSIGN(Beat b, BeatFromJson(beat));
    m.beats.push_back(std::move(b));
  }
  return m;
}

}  // namespace holdfast
