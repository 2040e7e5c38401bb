// SPDX-License-Identifier: Apache-2.0
#include "jobctl/progress.h"

#include <algorithm>
#include <cstdio>

#include "jobctl/options.h"
#include "ledger/base/printable.h"

namespace holdfast {
namespace {

constexpr uint64_t kTerminalNs = 200'000'000, kPlainNs = 5'000'000'000, kJsonNs = 1'000'000'000;

// The stage that is furthest behind tells the phase of the run.
int Rank(const std::string& phase) {
  static const std::map<std::string, int> kRank = {{"waiting", 0}, {"start", 0}, {"load", 1}, {"calibrate", 2}, {"evict", 3}, {"seal", 4}, {"done", 5}};
  const auto it = kRank.find(phase);
  return it == kRank.end() ? 0 : it->second;
}

std::string Percent(uint64_t done, uint64_t total) { return std::to_string(total == 0 ? 100 : done * 100 / total) + " %"; }

Json StageJson(const StageProgress& s) {
  return {{"stage", s.stage.value}, {"first_layer", s.first_layer}, {"last_layer", s.last_layer}, {"phase", s.phase},
          {"samples_done", s.samples_done}, {"samples_total", s.samples_total}, {"units_done", s.units_done}, {"units_total", s.units_total},
          {"bytes_read", s.bytes_read}, {"bytes_written", s.bytes_written}, {"rss_bytes", s.rss_bytes}, {"restarts", s.restarts},
          {"last_death", s.last_death}, {"window", s.size.window}, {"threads", s.size.threads}, {"pid", s.pid},
          {"cuts_received", s.cuts_received}, {"cuts_from_packs", s.cuts_from_packs}, {"chunks_dropped", s.chunks_dropped}};
}

}  // namespace

Progress::Progress(const Clock& clock, Mode mode) : clock_(clock), mode_(mode), attributed_ns_(clock.MonotonicNs()) {}

Progress::~Progress() {
  if (line_open_) std::fprintf(stderr, "\n");
}

void Progress::Event(const std::string& text) {
  if (mode_ == Mode::kJson) return EventJson({{"event", "note"}, {"text", text}});
  if (mode_ == Mode::kQuiet) return;
  if (line_open_) std::fprintf(stderr, "\r\033[K");
  line_open_ = false;
  std::fprintf(stderr, "%s\n", Printable(text, LineBreaks::kKeep).c_str());
}

void Progress::EventJson(const Json& line) {
  if (mode_ != Mode::kJson) return;
  std::printf("%s\n", line.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

void Progress::AddPhase(const std::string& phase, uint64_t ms) {
  phase_ms_[phase] += ms;
  attributed_ns_ = clock_.MonotonicNs();
}

void Progress::Attribute(const std::string& phase) {
  const uint64_t now = clock_.MonotonicNs();
  phase_ms_[phase] += (now - attributed_ns_) / 1'000'000;
  attributed_ns_ = now;
}

void Progress::Show(const std::string& line, const Json& json) {
  const uint64_t now = clock_.MonotonicNs();
  const uint64_t interval = mode_ == Mode::kTerminal ? kTerminalNs : mode_ == Mode::kPlain ? kPlainNs : kJsonNs;
  if (shown_ns_ != 0 && now - shown_ns_ < interval) return;
  shown_ns_ = now;
  if (mode_ == Mode::kJson) EventJson(json);
  if (mode_ == Mode::kPlain) std::fprintf(stderr, "%s\n", line.c_str());
  if (mode_ == Mode::kTerminal) {
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    std::fflush(stderr);
    line_open_ = true;
  }
}

void Progress::Stages(const std::vector<StageProgress>& stages) {
  if (stages.empty()) return;
  const auto slowest = std::min_element(stages.begin(), stages.end(), [](const auto& a, const auto& b) { return Rank(a.phase) < Rank(b.phase); });
  const std::string phase = Rank(slowest->phase) <= 1 ? "load" : Rank(slowest->phase) >= 3 ? "evict" : "calibrate";
  Attribute(phase);
  uint64_t samples = 0, samples_total = 0, units = 0, units_total = 0, written = 0;
  Json all = Json::array();
  std::string each;
  for (const StageProgress& s : stages) {
    samples += s.samples_done;
    samples_total += s.samples_total;
    units += s.units_done;
    units_total += s.units_total;
    written += s.bytes_written;
    all.push_back(StageJson(s));
    if (stages.size() > 1) each += "  s" + std::to_string(s.stage.value) + " " + s.phase + " " + std::to_string(s.samples_done) + "/" + std::to_string(s.samples_total);
  }
  const bool calibrating = phase != "evict";
  const uint64_t done = calibrating ? samples : units, total = calibrating ? samples_total : units_total;
  const uint64_t now = clock_.MonotonicNs();
  if (phase != shown_phase_) {   // rates and ETA speak of this phase in this life
    shown_phase_ = phase;
    rate_base_ns_ = now;
    rate_base_count_ = done;
  }
  const double seconds = static_cast<double>(now - rate_base_ns_) / 1e9;
  const double rate = seconds > 0.5 ? static_cast<double>(done - std::min(done, rate_base_count_)) / seconds : 0;
  const uint64_t eta = rate > 0 ? static_cast<uint64_t>(static_cast<double>(total - done) / rate) : 0;
  char speed[64] = "";
  if (rate > 0) std::snprintf(speed, sizeof speed, ", %.1f/s, ETA %s", rate / static_cast<double>(calibrating ? stages.size() : 1), FormatDuration(eta).c_str());
  const std::string what = calibrating ? " samples" : " layers";
  Show(phase + " " + Percent(done, total) + " (" + std::to_string(done / (calibrating ? stages.size() : 1)) + "/" +
           std::to_string(total / (calibrating ? stages.size() : 1)) + what + speed + ", " + FormatSize(written) + " committed)" + each,
       {{"event", "progress"}, {"phase", phase}, {"done", done}, {"total", total}, {"eta_seconds", eta}, {"stages", all}});
}

void Progress::Merge(const MergeProgress& m) {
  Attribute("merge");
  const uint64_t now = clock_.MonotonicNs();
  if (shown_phase_ != "merge") {
    shown_phase_ = "merge";
    rate_base_ns_ = now;
    rate_base_count_ = m.bytes_done;
  }
  const double seconds = static_cast<double>(now - rate_base_ns_) / 1e9;
  const double rate = seconds > 0.2 ? static_cast<double>(m.bytes_done - rate_base_count_) / seconds : 0;
  const uint64_t eta = rate > 0 ? static_cast<uint64_t>(static_cast<double>(m.bytes_total - m.bytes_done) / rate) : 0;
  std::string speed;
  if (rate > 0) speed = ", " + FormatSize(static_cast<uint64_t>(rate)) + "/s, ETA " + FormatDuration(eta);
  Show("merge " + Percent(m.bytes_done, m.bytes_total) + " (" + FormatSize(m.bytes_done) + " of " + FormatSize(m.bytes_total) + speed + ")",
       {{"event", "progress"}, {"phase", "merge"}, {"done", m.bytes_done}, {"total", m.bytes_total}, {"eta_seconds", eta},
        {"files_done", m.files_done}, {"files_total", m.files_total}});
}

}  // namespace holdfast
