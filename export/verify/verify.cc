// SPDX-License-Identifier: Apache-2.0
#include "export/verify/verify.h"

#include <algorithm>

#include "export/verify/output_view.h"

namespace holdfast {
namespace {

uint64_t TensorBytes(const OutputView& view) {
  uint64_t sum = 0;
  for (const auto& [name, place] : view.tensors) sum += place.tensor->bytes;
  return sum;
}

Status CheckContents(OutputView* view) {
  HOLDFAST_TRY(CheckTensors(view));
  view->bytes_total += SourceBytesToRead(*view);
  HOLDFAST_TRY(CheckValues(view));
  if (!view->options.source.empty()) HOLDFAST_TRY(CheckAgainstSource(view));
  return OkStatus();
}

}  // namespace

bool VerifyReport::ok() const {
  return std::none_of(findings.begin(), findings.end(), [](const VerifyFinding& f) { return f.severity == Severity::kError; });
}

Result<VerifyReport> VerifyOutput(FileSystem& fs, const std::string& dir, const VerifyOptions& options) {
  HOLDFAST_ASSIGN(const FileInfo info, fs.Stat(dir));
  if (!info.is_directory) return NotFound(dir + " is not a directory; give the output directory of a job");
  FindingSink sink;
  OutputView view(fs, dir, options, sink);
  HOLDFAST_TRY(CheckConfigs(&view));
  HOLDFAST_TRY(CheckDirectory(&view));
  HOLDFAST_TRY(CheckShards(&view));
  // Behind a shard that cannot be read every tensor would seem to be missing: say the cause only.
  const bool readable = !sink.Has("V006") && !sink.Has("V007");
  if (readable) HOLDFAST_TRY(CheckContents(&view));
  view.bytes_total = view.bytes_done;
  view.Tick();

  VerifyReport report;
  report.tensors = view.tensors.size();
  report.quantized_linears = view.sites.size();
  report.bytes = TensorBytes(view);
  report.compared_with_source = readable && !options.source.empty();
  report.findings = sink.Take();
  return report;
}

}  // namespace holdfast
