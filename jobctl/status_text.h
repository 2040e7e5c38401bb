// SPDX-License-Identifier: Apache-2.0
//
// A root's status as people read it. Pure: values in, text out.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "jobctl/job_status.h"

namespace holdfast {

enum class Colours : uint8_t { kNo, kYes };
Colours UseColours();                     // on a terminal, unless NO_COLOR says no: all that is asked of the world here

// Everything: one block a job, the nodes in a line, the summary of the night.
std::string RenderStatus(const RootStatus& status, const NightSummary& summary, uint64_t now_wall_ns, Colours colours);
std::string RenderSource(const NodesSeen& nodes);   // "from the ledger alone: no daemon answers"
std::string RenderNodesLine(const NodesSeen& nodes, uint64_t now_wall_ns, Colours colours);
// One job, with every claim and its report.
std::string RenderJob(const JobStatus& job, Colours colours);
std::string RenderNodes(const NodesSeen& nodes, uint64_t now_wall_ns, Colours colours);
std::string RenderRestarts(const std::map<std::string, uint64_t>& restarts);   // "3 (signal 9 x2, out_of_memory x1)"

}  // namespace holdfast
