// SPDX-License-Identifier: Apache-2.0
//
// The files of an output directory that hold no tensors. Pure functions of the job, the plan and the source's pinned files: no
// claim, time, host or thread count gets into them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "export/shard/output_plan.h"
#include "ledger/base/file_system.h"
#include "ledger/records/records.h"

namespace holdfast {

inline constexpr char kProvenanceFile[] = "holdfast.json";
inline constexpr char kManifestFile[] = "SHA256SUMS";

// name -> content: index (when there are several files), config.json, hf_quant_config.json (modelopt), generation_config.json, the sidecars of
// the job and holdfast.json, which says that the bytes were computed in the class `numerics`, without the samples
// `omitted`. Errors: kInvalidArgument naming a sidecar that is missing, unsafe to write or not what was pinned.
Result<std::map<std::string, Bytes>> MakeMetadata(FileSystem& fs, const JobSpec& job,
                                                  const std::string& numerics,
                                                  const std::vector<uint32_t>& omitted,
                                                  const Plan& plan, const OutputPlan& output);

// `sha256sum -c` reads it: digest, two spaces, name; by name.
std::string MakeManifest(const std::map<std::string, Digest>& files);
// kCorrupt names the line.
Result<std::map<std::string, Digest>> ParseManifest(std::string_view text, const std::string& path);

}  // namespace holdfast
