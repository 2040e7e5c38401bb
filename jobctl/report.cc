// SPDX-License-Identifier: Apache-2.0
#include "jobctl/report.h"

#include <algorithm>
#include <cstdio>

#include "jobctl/cost_model.h"
#include "jobctl/options.h"
#include "ledger/base/printable.h"

namespace holdfast {
namespace {

std::string Text(const Json& j, const char* key) { return j.contains(key) && j[key].is_string() ? Printable(j[key].get<std::string>()) : ""; }
uint64_t Number(const Json& j, const char* key) { return j.contains(key) && j[key].is_number_unsigned() ? j[key].get<uint64_t>() : 0; }

std::string SecondsText(uint64_t ms) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", static_cast<double>(ms) / 1000);
  return text;
}

}  // namespace

std::string RenderOmitted(const Json& omitted, uint64_t samples) {
  if (!omitted.is_array() || omitted.empty()) return "";
  std::string list;
  for (const Json& o : omitted) {
    if (o.is_object()) list += (list.empty() ? "" : ", ") + std::to_string(Number(o, "sample")) + " (" + Text(o, "why") + ")";
  }
  return std::to_string(omitted.size()) + " of " + std::to_string(samples) + " samples left out: " + list;
}

std::string RenderPlanned(const Json& r) {
  if (!r.contains("plan") || !r["plan"].is_object()) return "";
  std::string out;
  for (const char* phase : {"check", "load", "calibrate", "evict", "merge"}) {
    if (!r["plan"].contains(phase)) continue;
    const Json& p = r["plan"][phase];
    const auto seconds = [&](const char* key) { return static_cast<double>(Number(p, key)) / 1000; };
    char line[160];
    std::snprintf(line, sizeof line, "%-12s%-10s planned %-26s took %s\n", out.empty() ? "Plan" : "", phase,
                  FormatRange({seconds("low_ms"), seconds("high_ms")}).c_str(),
                  FormatSeconds(static_cast<double>(r.contains("phase_ms") ? Number(r["phase_ms"], phase) : 0) / 1000).c_str());
    out += line;
  }
  if (!out.empty() && r.contains("plan_rest")) out += "            (of what was left to do when this attempt began)\n";
  return out;
}

std::string RenderReport(const Json& r) {
  std::string out = "\nResult      " + Text(r, "out") + "\n";
  out += "Sizes       " + FormatSize(Number(r, "source_bytes")) + " in, " + FormatSize(Number(r, "output_bytes")) + " out in " +
         std::to_string(Number(r, "output_files")) + " file(s), " + std::to_string(Number(r, "quantized_linears")) + " linears in NVFP4 (" + Text(r, "recipe") + ")\n";
  const uint64_t left_out = r.contains("omitted") && r["omitted"].is_array() ? r["omitted"].size() : 0;
  out += "Calibration " + std::to_string(Number(r, "samples") - std::min(Number(r, "samples"), left_out)) + " samples, " + std::to_string(Number(r, "tokens")) + " tokens, " + Text(r, "numerics") + "\n";
  if (r.contains("omitted")) out += "            " + RenderOmitted(r["omitted"], Number(r, "samples")) + "\n";
  std::string times;   // of the phases that this process saw: in a cluster others see the rest
  uint64_t total = 0;
  for (const char* phase : {"check", "load", "calibrate", "evict", "merge"}) {
    const uint64_t ms = r.contains("phase_ms") ? Number(r["phase_ms"], phase) : 0;
    if (ms == 0) continue;
    total += ms;
    times += (times.empty() ? "" : ", ") + std::string(phase) + " " + SecondsText(ms);
  }
  if (!times.empty()) out += "Time        " + times + " (" + SecondsText(total) + " in this attempt)\n";
  out += RenderPlanned(r);
  std::string why;
  if (r.contains("restart_reasons")) {
    for (const auto& [reason, count] : r["restart_reasons"].items()) {
      if (count.is_number_unsigned()) why += (why.empty() ? " (" : ", ") + Printable(reason) + " x" + std::to_string(count.get<uint64_t>());
    }
  }
  out += "Restarts    " + std::to_string(Number(r, "restarts")) + (why.empty() ? "" : why + ")") + "\n";
  const auto count = [&](const char* key) { return r.contains(key) && r[key].is_array() ? r[key].size() : 0; };
  out += "Sites       " + std::to_string(count("zero_amax_sites")) + " with zero amax, " + std::to_string(count("nan_amax_sites")) + " with NaN";
  const bool named = count("zero_amax_sites") > 0 && r["zero_amax_sites"][0].is_string();
  if (named) out += " (input_scale 1 was written for: " + Printable(r["zero_amax_sites"][0].get<std::string>()) + (count("zero_amax_sites") > 1 ? ", ..." : "") + ")";
  out += "\n\nCheck it    jobctl verify " + Text(r, "out") + " --source " + Text(r, "source") + "\n";
  out += "Serve it    vllm serve " + Text(r, "out") + "\n";
  out += "            (the ledger " + Text(r, "run_dir") + " may be deleted once you are content)\n";
  return out;
}

}  // namespace holdfast
