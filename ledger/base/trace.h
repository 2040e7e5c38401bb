// SPDX-License-Identifier: Apache-2.0
//
// Where a process spends its time, as a timeline: HOLDFAST_TRACE=DIR makes each worker and each merge write DIR/<program>.<pid>.json at its end, in
// the trace event format that Perfetto and chrome://tracing show. One that is killed writes nothing. Without the variable a span costs a branch.
#pragma once

#include <cstdint>
#include <string>

#include "ledger/base/result.h"

namespace holdfast {

// From its construction to its destruction, on this thread. `name` must outlive the process: a literal.
class TraceSpan {
 public:
  explicit TraceSpan(const char* name);
  ~TraceSpan();
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  const char* const name_;   // null: tracing is off
  const uint64_t begin_ns_;
};

// Whether HOLDFAST_TRACE was set when the process began.
bool Tracing();
// Writes the spans that ended so far, of all threads; nothing if tracing is off. To be called before _exit.
Status WriteTrace(const std::string& program);

}  // namespace holdfast
