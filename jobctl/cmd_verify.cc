// SPDX-License-Identifier: Apache-2.0
//
// jobctl verify: judges an output directory. What the directory must hold follows from its own config.json through the decoder
// description; the rules are in export/verify.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <thread>

#include "calib/model/decoder.h"
#include "export/format/hf_config.h"
#include "export/verify/verify.h"
#include "jobctl/options.h"
#include "jobctl/preflight.h"

namespace holdfast {
namespace {

// The plan that the output's own config.json implies; nullopt when it does not parse or is not an architecture that we know
// (VerifyOutput then says so).
std::optional<Plan> ExpectedPlan(FileSystem& fs, const std::string& out) {
  const std::string path = JoinPath(out, "config.json");
  const auto bytes = fs.ReadFile(path, 64u << 20);
  if (!bytes.ok()) return std::nullopt;
  auto config = ParseJson(AsText(*bytes), path);
  if (!config.ok()) return std::nullopt;
  const auto quant = ParseConfigQuant(*config, path);
  if (!quant.ok()) return std::nullopt;
  config->erase("quantization_config");
  const auto spec = ParseDecoder(*config, path);
  if (!spec.ok()) return std::nullopt;
  const bool attention_excluded = spec->layers > 0 && IsLeftOut(quant->layout, quant->exclude, "model.layers.0.self_attn.q_proj");
  const Recipe recipe = quant->quant_algo == "W4A16_NVFP4" ? Recipe::kNvfp4W4A16 : attention_excluded ? Recipe::kNvfp4MlpOnly : Recipe::kNvfp4;
  const auto plan = DescribeModel(*spec, recipe);
  if (!plan.ok()) return std::nullopt;
  return *plan;
}

}  // namespace

int VerifyCommand(const VerifyOptionsCli& options) {
  PosixFileSystem fs;
  const std::string out = AbsolutePath(options.out);
  const std::optional<Plan> expected = ExpectedPlan(fs, out);
  VerifyOptions v;
  v.threads = options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  v.source = options.source.empty() ? "" : AbsolutePath(options.source);
  v.expected = expected ? &*expected : nullptr;
  const bool terminal = !options.json && ::isatty(STDERR_FILENO) == 1;
  v.on_progress = [&](uint64_t done, uint64_t total) {
    if (terminal) std::fprintf(stderr, "\r\033[Kverify %s of %s", FormatSize(done).c_str(), FormatSize(total).c_str());
  };
  const auto report = VerifyOutput(fs, out, v);
  if (terminal) std::fprintf(stderr, "\r\033[K");
  if (!report.ok()) return Fail(report.error(), options.json);
  Json findings = Json::array();
  for (const VerifyFinding& f : report->findings) {
    findings.push_back({{"code", f.code}, {"severity", f.severity == Severity::kError ? "error" : "warning"}, {"object", f.object}, {"message", f.message}});
    if (!options.json) std::printf("%s %s: %s: %s\n", f.code.c_str(), f.severity == Severity::kError ? "error" : "warning", f.object.c_str(), f.message.c_str());
  }
  if (options.json) {
    const Json doc{{"schema", 1}, {"out", out}, {"ok", report->ok()}, {"findings", findings}, {"tensors", report->tensors},
                   {"quantized_linears", report->quantized_linears}, {"bytes", report->bytes}, {"compared_with_source", report->compared_with_source}};
    std::printf("%s\n", doc.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    std::printf("%s: %llu tensors, %llu quantized linears, %s%s: %s\n", out.c_str(), static_cast<unsigned long long>(report->tensors),
                static_cast<unsigned long long>(report->quantized_linears), FormatSize(report->bytes).c_str(),
                report->compared_with_source ? ", compared with its source byte for byte" : "", report->ok() ? "sound" : "NOT sound");
  }
  return report->ok() ? kExitOk : kExitFailure;
}

}  // namespace holdfast
