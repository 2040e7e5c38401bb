// SPDX-License-Identifier: Apache-2.0
#include "jobctl/status_text.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>

#include "daemon/core/cluster.h"
#include "jobctl/options.h"
#include "jobctl/report.h"
#include "ledger/base/printable.h"

namespace holdfast {
namespace {

constexpr uint64_t kNsPerSecond = 1'000'000'000;
constexpr size_t kMovesShown = 3;          // of one job among others

std::string Paint(const std::string& text, const char* code, Colours colours) {
  return colours == Colours::kYes ? std::string("\033[") + code + "m" + text + "\033[0m" : text;
}

// The last pass over everything that is shown: whatever field it came from, nothing in it moves a cursor.
std::string ForTerminal(const std::string& text, Colours colours) {
  return Printable(text, LineBreaks::kKeep, colours == Colours::kYes ? ColourCodes::kKeep : ColourCodes::kSpell);
}

std::string PaintState(const std::string& state, const std::string& padded, Colours colours) {
  if (state == "done" || state == "alive") return Paint(padded, "32", colours);
  if (state == "failed" || state == "refused" || state == "silent") return Paint(padded, "31", colours);
  if (state == "waiting") return Paint(padded, "33", colours);
  if (state == "running" || state == "merging") return Paint(padded, "36", colours);
  return padded;
}

std::string Pad(std::string text, size_t width) {
  if (text.size() < width) text.resize(width, ' ');
  return text;
}

std::string TimeOfDay(uint64_t wall_ns) {
  const std::time_t seconds = static_cast<std::time_t>(wall_ns / kNsPerSecond);
  std::tm local{};
  ::localtime_r(&seconds, &local);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
  return text;
}

std::string Ago(uint64_t then_ns, uint64_t now_ns) {
  return now_ns > then_ns ? FormatDuration((now_ns - then_ns) / kNsPerSecond) + " ago" : "just now";
}

std::string Layers(const StageStatus& s) { return std::to_string(s.first_layer) + "-" + std::to_string(s.last_layer - 1); }

// "calibrate 45 %": of the phase that the job is in.
std::string Progress(const JobStatus& job) {
  const std::string phase = JobPhase(job);
  uint64_t done = 0, total = 0;
  for (const StageStatus& s : job.stages) {
    done += phase == "evict" ? s.units_done : s.samples_done;
    total += phase == "evict" ? s.units_total : s.samples_total;
  }
  if (phase == "merge") done = job.merge.bytes_done, total = job.merge.bytes_total;
  if (total == 0 || phase == "seal" || phase == "done") return phase;
  return phase + " " + std::to_string(done * 100 / total) + " %";
}

std::string Restarts(const StageStatus& s) {
  std::map<std::string, uint64_t> reasons;
  for (size_t i = 1; i < s.claims.size(); ++i) ++reasons[s.claims[i].reason];
  return reasons.empty() ? "" : ", restarts " + RenderRestarts(reasons);
}

std::string StageLine(const StageStatus& s, Colours colours) {
  std::string line = "    stage " + Pad(std::to_string(s.stage), 3) + " layers " + Pad(Layers(s), 8) + " " + Pad(s.node.empty() ? "no node" : SeatName(s.node, s.device == "cpu" ? "" : s.device), 10) + " " +
                     Pad(s.phase, 10) + "samples " + std::to_string(s.samples_done) + "/" + std::to_string(s.samples_total) + ", layers evicted " +
                     std::to_string(s.units_done) + "/" + std::to_string(s.units_total) + Restarts(s);
  if (s.eta_seconds && *s.eta_seconds > 0) line += ", about " + FormatDuration(*s.eta_seconds) + " left";
  line += "\n";
  if (s.phase == "done") return line;
  std::string why = s.note;
  if (!s.node.empty() && !s.node_alive) why += (why.empty() ? "" : "; ") + s.node + " is " + Paint("silent", "31", colours);
  if (!s.task.empty() && s.task != "running" && s.task != "done") why += (why.empty() ? "" : "; ") + s.node + ": " + s.task;
  if (!s.error.empty()) why += (why.empty() ? "" : ": ") + s.error;
  if (!s.last_death.empty()) why += (why.empty() ? "" : "; ") + ("its worker last died of: " + s.last_death);
  return why.empty() ? line : line + "              " + Printable(why, LineBreaks::kSpell, ColourCodes::kKeep) + "\n";
}

std::string MergeLine(const MergeStatus& m) {
  if (m.files_written == 0 && m.node.empty()) return "";
  return "    merge" + (m.node.empty() ? "" : " on " + m.node) + ": " + std::to_string(m.files_written) + " of " + std::to_string(m.files_total) + " file(s), " +
         FormatSize(m.bytes_done) + " of " + FormatSize(m.bytes_total) + (m.published ? ", published" : "") +
         (m.lives > 1 ? ", begun " + std::to_string(m.lives) + " times (last: " + m.reason + ")" : "") + "\n";
}

// Why work was given out anew, the latest `most` times.
std::string Moves(const JobStatus& job, size_t most) {
  std::vector<std::string> lines;
  for (const Move& m : job.moves) {
    if (m.why != "start" && m.merge_node.empty()) lines.push_back("    " + TimeOfDay(m.wall_ns) + " placed anew: " + Printable(m.why) + "\n");
  }
  std::string out;
  for (size_t i = lines.size() > most ? lines.size() - most : 0; i < lines.size(); ++i) out += lines[i];
  return out;
}

bool Ended(const JobStatus& job) { return job.state == "done" || job.state == "failed" || job.state == "cancelled" || job.state == "refused"; }

std::string JobHead(const JobStatus& job, Colours colours) {
  std::string head = "  " + Pad(job.name, 20) + " " + PaintState(job.state, Pad(job.state, 10), colours) + job.id;
  if (job.state == "running" || job.state == "merging") head += "  " + Progress(job);
  if (job.eta_seconds) head += ", about " + FormatDuration(*job.eta_seconds) + " left";
  if (job.priority != 0) head += "  priority " + std::to_string(job.priority);
  if (job.ended_wall_ns > job.submitted_wall_ns) {
    head += "  " + FormatDuration((job.ended_wall_ns - job.submitted_wall_ns) / kNsPerSecond) + " after submission";
  }
  return head + "\n";
}

std::string JobBlock(const JobStatus& job, size_t moves_max, Colours colours) {
  std::string out = JobHead(job, colours) + "    " + Printable(job.source) + " -> " + Printable(job.out) + "\n";
  if (!job.detail.empty()) out += "    " + Printable(job.detail) + "\n";
  if (!job.omitted.empty() && !job.report.is_object()) out += "    " + RenderOmitted(job.omitted, job.samples) + "\n";
  out += Moves(job, moves_max);
  if (!Ended(job) && job.state != "queued") {
    for (const StageStatus& s : job.stages) out += StageLine(s, colours);
    out += MergeLine(job.merge);
  }
  if (Ended(job) && !job.restarts.empty()) out += "    restarts " + RenderRestarts(job.restarts) + "\n";
  if (!job.next.empty() && job.state != "done") out += "    next: " + Printable(job.next) + "\n";
  return out;
}

std::string SummaryLine(const NightSummary& s, const std::vector<JobStatus>& jobs, Colours colours) {
  std::string counts;
  for (const char* state : {"done", "failed", "refused", "cancelled", "running", "merging", "waiting", "queued"}) {
    const auto it = s.states.find(state);
    if (it == s.states.end()) continue;
    std::string names;
    for (const JobStatus& job : jobs) {
      const bool named = job.state == state && (job.state == "failed" || job.state == "refused");
      if (named) names += (names.empty() ? " (" : ", ") + job.name;
    }
    counts += (counts.empty() ? "" : ", ") + PaintState(state, std::to_string(it->second) + " " + state, colours) + (names.empty() ? "" : names + ")");
  }
  if (counts.empty()) return "Summary  no jobs\n";
  return "Summary  " + counts + "; " + FormatDuration(s.elapsed_seconds) + "; restarts " + RenderRestarts(s.restarts) + "\n";
}

std::string NodeBlock(const NodeStatus& n, uint64_t now_wall_ns, Colours colours) {
  const Incarnation& i = n.known.incarnation;
  std::string out = "  " + Pad(n.known.name, 16) + " " + PaintState(NodeLifeName(n.life), Pad(NodeLifeName(n.life), 9), colours) + i.hostname + "  " +
                    (i.endpoint.empty() ? "no endpoint" : i.endpoint) + (n.drained ? "  drained" : "") + "\n";
  if (n.life == NodeLife::kSilent && n.beat) out += "    last beat " + TimeOfDay(n.beat->wall_ns) + ", " + Ago(n.beat->wall_ns, now_wall_ns) + "\n";
  if (n.life == NodeLife::kSilent && !n.beat && n.known.claimed_wall_ns > 0) out += "    last start " + TimeOfDay(n.known.claimed_wall_ns) + "\n";
  if (n.life == NodeLife::kReleased && !n.known.reason.empty()) out += "    said goodbye: " + n.known.reason + "\n";
  out += "    " + (i.device.empty() ? "?" : i.device) + ", " + (i.numerics.empty() ? "?" : i.numerics) + ", holdfast " + (i.version.empty() ? "?" : i.version) +
         ", " + std::to_string(i.threads) + " threads, " + std::to_string(i.speed / 1000) + " GFLOP/s\n";
  const uint64_t memory = n.beat ? n.beat->memory_bytes : i.memory_bytes;
  out += "    memory " + FormatSize(n.beat && n.life == NodeLife::kAlive ? n.beat->memory_planned : 0) + " planned of " + FormatSize(memory);
  if (n.beat && n.life == NodeLife::kAlive) out += ", " + FormatSize(n.beat->memory_available) + " available";
  out += ", life " + std::to_string(n.known.lives) + "\n";
  for (const DeviceBeat& d : n.beat ? n.beat->devices : std::vector<DeviceBeat>{}) {
    out += "    device " + Pad(d.name, 7) + " " + FormatSize(d.memory_bytes) + ", " + std::to_string(d.speed / 1000) + " GFLOP/s" +
           (d.numerics == i.numerics ? "" : ", " + d.numerics) + "\n";
  }
  if (!n.beat || n.life != NodeLife::kAlive) return out;
  if (n.beat->paused) out += "    paused: memory is short (pressure " + std::to_string(n.beat->pressure / 100) + " %)\n";
  if (n.beat->storage_stalled_ms > 0) out += "    the shared directory has not answered it for " + FormatDuration(n.beat->storage_stalled_ms / 1000) + "\n";
  for (const TaskBeat& t : n.beat->tasks) {
    out += "    job " + t.job + (t.stage == kMergeTask ? " merge" : " stage " + std::to_string(t.stage)) + (t.device.empty() ? "" : " on " + t.device) + ": " + t.state + (t.phase.empty() ? "" : ", " + t.phase) +
           ", " + FormatSize(t.rss_bytes) + " of " + FormatSize(t.planned_bytes) + (t.last_death.empty() ? "" : ", last died of: " + t.last_death) +
           (t.error.empty() ? "" : ", " + t.error) + "\n";
  }
  for (const std::string& w : n.beat->warnings) out += "    " + Paint("warning", "33", colours) + ": " + w + "\n";
  return out;
}

std::string Warnings(const NodesSeen& nodes) {
  std::string out;
  for (const std::string& w : nodes.warnings) out += "warning: " + Printable(w) + "\n";
  return out;
}

}  // namespace

Colours UseColours() {
  const char* no = std::getenv("NO_COLOR");
  return ::isatty(STDOUT_FILENO) == 1 && (no == nullptr || *no == '\0') ? Colours::kYes : Colours::kNo;
}

std::string RenderRestarts(const std::map<std::string, uint64_t>& restarts) {
  uint64_t all = 0;
  std::string why;
  for (const auto& [reason, count] : restarts) {
    all += count;
    why += (why.empty() ? " (" : ", ") + reason + " x" + std::to_string(count);
  }
  return std::to_string(all) + (why.empty() ? "" : why + ")");
}

std::string RenderSource(const NodesSeen& nodes) {
  const std::string by = nodes.answered_by.empty() ? "from the ledger alone: no daemon answers" : "as " + nodes.answered_by + " hears it";
  return by + (nodes.renames ? "; no hard links here: commits are renames" : "");
}

std::string RenderNodesLine(const NodesSeen& nodes, uint64_t now_wall_ns, Colours colours) {
  std::string line;
  for (const NodeStatus& n : nodes.nodes) {
    line += (line.empty() ? "Nodes    " : ", ") + n.known.name + " " + PaintState(NodeLifeName(n.life), NodeLifeName(n.life), colours);
    if (n.life == NodeLife::kSilent && n.beat) line += " (last beat " + Ago(n.beat->wall_ns, now_wall_ns) + ")";
    if (n.drained) line += " drained";
    if (n.beat && n.beat->paused && n.life == NodeLife::kAlive) line += " paused: memory is short";
  }
  return line.empty() ? "Nodes    none yet: start `holdfastd` on a machine that sees this directory\n" : ForTerminal(line, colours) + "\n";
}

std::string RenderStatus(const RootStatus& status, const NightSummary& summary, uint64_t now_wall_ns, Colours colours) {
  std::string out = "Root     " + status.root + " (" + RenderSource(status.nodes) + ")\n" + Warnings(status.nodes);
  for (const JobStatus& job : status.jobs) out += JobBlock(job, kMovesShown, colours);
  return ForTerminal(out + RenderNodesLine(status.nodes, now_wall_ns, colours) + SummaryLine(summary, status.jobs, colours), colours);
}

std::string RenderJob(const JobStatus& job, Colours colours) {
  std::string out = JobBlock(job, job.moves.size(), colours);
  if (job.folded && Ended(job)) {
    for (const StageStatus& s : job.stages) out += StageLine(s, colours);
    out += MergeLine(job.merge);
  }
  for (const StageStatus& s : job.stages) {
    for (const ClaimNote& c : s.claims) {
      out += "    stage " + std::to_string(s.stage) + ", life " + std::to_string(c.epoch) + ": " + c.reason + (c.node.empty() ? "" : ", on " + c.node) + "\n";
    }
  }
  for (const NodeShare& s : job.shares) {
    out += "    " + (s.node.empty() ? "?" : s.node) + " did " + std::to_string(s.samples) + " sample record(s) and " + std::to_string(s.units) + " layer(s) (" + s.numerics + ")\n";
  }
  if (job.nondeterminism > 0) out += "    " + std::to_string(job.nondeterminism) + " record(s) differ from the first of their key: run `jobctl fsck`\n";
  if (job.report.is_object()) out += RenderReport(job.report);
  return ForTerminal(out, colours);
}

std::string RenderNodes(const NodesSeen& nodes, uint64_t now_wall_ns, Colours colours) {
  std::string out = "Nodes (" + RenderSource(nodes) + ")\n" + Warnings(nodes);
  for (const NodeStatus& n : nodes.nodes) out += NodeBlock(n, now_wall_ns, colours);
  out = ForTerminal(out, colours);
  return nodes.nodes.empty() ? out + "  none yet: start `holdfastd` on a machine that sees this directory\n" : out;
}

}  // namespace holdfast
