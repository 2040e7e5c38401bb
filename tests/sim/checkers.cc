// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/checkers.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "fsck/fsck.h"
#include "ledger/fold/run_state.h"
#include "ledger/log/stream.h"

namespace holdfast::sim {
namespace {

struct Counted {               // a record that counts, and where it is
  std::string stream;
  uint32_t seq = 0;
  Record record;
};

// One stream from the server, judged by itself.
std::string ReadStream(FileSystem& fs, const RunLayout& layout, const std::string& stream, const Nonce& job, std::vector<Counted>* counted) {
  const auto names = fs.List(layout.StreamDir(stream));
  if (!names.ok()) return "cannot list " + stream;
  Digest tail;
  uint64_t epoch = 0;
  Nonce owner;
  for (uint32_t seq = 0; seq < names->size(); ++seq) {
    const std::string where = stream + " slot " + std::to_string(seq) + ": ";
    if ((*names)[seq] != BaseName(layout.Slot(stream, seq))) return where + "missing, " + (*names)[seq] + " lies there";
    Digest prev;
    const auto slot = ReadSlot(fs, layout, stream, seq, job, &prev);
    if (!slot.ok()) return where + slot.error().message;
    if (prev != tail) return where + "does not follow the slot before it";
    tail = slot->digest;
    for (const Record& r : slot->records) {
      if (r.key.cls != RecordClass::kClaim) continue;
      const auto json = ControlPayload(r);
      const auto claim = json.ok() ? Claim::FromJson(*json) : Result<Claim>(json.error());
      if (!claim.ok()) return where + "its claim does not decode";
      if (claim->epoch != epoch + 1) return where + "claims epoch " + std::to_string(claim->epoch) + " after " + std::to_string(epoch);
      epoch = claim->epoch;
      owner = claim->incarnation;
    }
    for (const Record& r : slot->records) {
      if (r.epoch != epoch) continue;
      if (slot->incarnation != owner) return where + "a record of epoch " + std::to_string(epoch) + " counts, written by somebody who never claimed it";
      counted->push_back({stream, seq, r});
    }
  }
  return "";
}

std::string ReadLog(Cluster& cluster, std::vector<Counted>* counted) {
  NfsFs fs(cluster.server);
  const RunLayout layout{kRunDir};
  const auto job = ReadJobId(fs, layout);
  const auto streams = fs.List(layout.LogDir());
  if (!job.ok() || !streams.ok()) return "the log is gone";
  for (const std::string& stream : *streams) {
    if (const std::string wrong = ReadStream(fs, layout, stream, *job, counted); !wrong.empty()) return wrong;
  }
  return "";
}

std::map<std::string, Digest> Files(FileSystem& fs, const std::string& dir) {
  std::map<std::string, Digest> files;
  const auto names = fs.List(dir);
  for (size_t i = 0; names.ok() && i < names->size(); ++i) {
    const auto bytes = fs.ReadFile(JoinPath(dir, (*names)[i]));
    files[(*names)[i]] = bytes.ok() ? Sha256(*bytes) : Digest{};
  }
  return files;
}

// The fold agrees with the reading above about what counts: nothing else, and of each key the first.
std::string CheckFold(Cluster& cluster, std::vector<Counted> counted) {
  NfsFs fs(cluster.server);
  RunState state(fs, RunLayout(kRunDir));
  if (const Status s = state.Refresh(); !s.ok()) return "fold: " + s.error().message;
  // Stage numbers first, then slots: the order in which the first counts.
  std::stable_sort(counted.begin(), counted.end(), [](const Counted& a, const Counted& b) { return std::tie(a.stream, a.seq) < std::tie(b.stream, b.seq); });
  std::set<std::pair<uint32_t, uint32_t>> seen;
  for (size_t i = 0; i + 1 < counted.size(); ++i) {
    const Record& r = counted[i].record;
    if (r.key.cls != RecordClass::kSample || r.key.part != 0) continue;
    const auto sample = SampleRecord::FromRecords(r, counted[i + 1].record);
    if (!sample.ok()) return "fold: a sample record does not decode";
    for (uint32_t layer = sample->first_layer; layer < sample->last_layer; ++layer) {
      if (!seen.emplace(sample->sample, layer).second) continue;
      const SampleRecord* said = state.Sample(sample->sample, layer);
      const std::string what = "fold: sample " + std::to_string(sample->sample) + ", layer " + std::to_string(layer) + ": ";
      if (said == nullptr) return what + "not there, though the log has it";
      if (said->amax != sample->amax || said->input != sample->input) return what + "not the first record of the log";
    }
  }
  for (uint32_t s = 0; s < state.job().samples; ++s) {
    for (uint32_t layer = 0; layer < state.plan().layers; ++layer) {
      if (state.Sample(s, layer) != nullptr && !seen.contains({s, layer})) return "fold: counts a sample that no owner wrote";
    }
  }
  return "";
}

// The samples that the ledger leaves out: no more than the job allows.
std::string Omitted(Cluster& cluster, std::vector<uint32_t>* omitted) {
  NfsFs fs(cluster.server);
  RunState state(fs, RunLayout(kRunDir));
  if (const Status s = state.Refresh(); !s.ok()) return "fold: " + s.error().message;
  *omitted = state.OmittedSamples();
  return omitted->size() <= cluster.options.shape.skip ? "" : "more samples are left out than the job allows";
}

}  // namespace

bool BudgetLost(Cluster& cluster) {
  std::vector<uint32_t> omitted;
  if (!Omitted(cluster, &omitted).empty() || omitted.size() < cluster.options.shape.skip) return false;
  const auto bad = [&](uint32_t sample) {
    const auto in = [&](const std::vector<uint32_t>& list) { return std::find(list.begin(), list.end(), sample) != list.end(); };
    return in(cluster.options.poison) || in(cluster.options.infinite);
  };
  return std::any_of(omitted.begin(), omitted.end(), [&](uint32_t s) { return !bad(s); });
}

SlotWatch::SlotWatch(Cluster& cluster) {
  cluster.server.on_name = [this, &cluster](const std::string& op, const std::string& path) {
    if (!path.ends_with(".seg") || cluster.server.kind() == NfsServer::Export::kAsync) return;
    if (op != "unlink" && op != "rename-away" && made_.emplace(path, cluster.world.now()).second) return;
    cluster.world.Violation("a slot that was taken changed: " + op + " " + path);
  };
}

std::string CheckLog(Cluster& cluster) {
  std::vector<Counted> counted;
  if (const std::string wrong = ReadLog(cluster, &counted); !wrong.empty()) return "log: " + wrong;
  std::set<std::tuple<std::string, uint64_t, Bytes>> there;
  for (const Counted& c : counted) there.emplace(c.stream, c.record.epoch, c.record.key.Encode());
  for (const Ack& ack : cluster.acks()) {
    if (there.contains({ack.stream, ack.epoch, ack.key.Encode()})) continue;
    return "acknowledged, and does not count: " + ack.stream + " epoch " + std::to_string(ack.epoch) + " class " + std::to_string(static_cast<int>(ack.key.cls)) + " a " +
           std::to_string(ack.key.a) + " b " + std::to_string(ack.key.b);
  }
  return CheckFold(cluster, std::move(counted));
}

std::string CheckOutput(Cluster& cluster, uint32_t* left_out) {
  // By layers, samples and those that are left out: nothing else decides.
  static std::map<std::tuple<uint32_t, uint32_t, std::vector<uint32_t>>, std::map<std::string, Digest>> reference;
  const JobShape& shape = cluster.options.shape;
  std::vector<uint32_t> omitted;
  if (const std::string wrong = Omitted(cluster, &omitted); !wrong.empty()) return wrong;
  *left_out = static_cast<uint32_t>(omitted.size());
  auto& want = reference[{shape.layers, shape.samples, omitted}];
  if (want.empty()) {
    Cluster calm({.seed = 1, .trace = false, .shape = {.layers = shape.layers, .samples = shape.samples, .cut = {shape.layers}, .skip = 0, .without = omitted}, .nodes = {{.name = "calm"}}});
    calm.Submit();
    calm.nodes.at("calm")->PowerOn();
    while (!calm.Done() && calm.world.Step()) {
    }
    if (!calm.Done()) return "output: the run without faults does not end: " + calm.world.violation();
    NfsFs fs(calm.server);
    want = Files(fs, kOutDir);
  }
  NfsFs fs(cluster.server);
  const auto got = Files(fs, kOutDir);
  for (const auto& [name, digest] : want) {
    const auto it = got.find(name);
    if (it == got.end()) return "output: " + name + " is missing";
    if (!omitted.empty() && (name == "holdfast.json" || name == "SHA256SUMS")) continue;   // says what was left out of which set
    if (it->second != digest) return "output: " + name + " is not what a run without faults writes";
  }
  return got.size() == want.size() ? "" : "output: has files that a run without faults does not write";
}

std::string CheckFsck(Cluster& cluster, bool deep) {
  NfsFs fs(cluster.server);
  const FsckReport report = RunFsck(fs, kRunDir, {.deep = deep, .threads = 1, .on_progress = {}});
  if (report.exit_status == 0) return "";
  for (const FsckFinding& f : report.findings) {
    if (f.severity == FsckSeverity::kError) return "fsck: " + f.code + " " + f.object + ": " + f.message;
  }
  return "fsck: exit status " + std::to_string(report.exit_status);
}

}  // namespace holdfast::sim
