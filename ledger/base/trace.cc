// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/trace.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <vector>

#include "ledger/base/clock.h"

namespace holdfast {
namespace {

struct Span {
  const char* name;
  uint64_t begin_ns, end_ns;
};

struct ThreadSpans {
  std::mutex mutex;          // its thread's, but for the moment of writing
  std::vector<Span> spans;   // guarded by mutex
};

// Never destroyed: threads may still end spans while the process does.
struct Registry {
  const char* const dir = std::getenv("HOLDFAST_TRACE");
  std::mutex mutex;
  std::vector<std::shared_ptr<ThreadSpans>> threads;   // guarded by mutex
  static Registry& Get() {
    static Registry& registry = *new Registry;
    return registry;
  }
};

ThreadSpans& Mine() {
  thread_local const std::shared_ptr<ThreadSpans> mine = [] {
    auto spans = std::make_shared<ThreadSpans>();
    Registry& registry = Registry::Get();
    const std::lock_guard lock(registry.mutex);
    registry.threads.push_back(spans);
    return spans;
  }();
  return *mine;
}

}  // namespace

bool Tracing() { return Registry::Get().dir != nullptr; }

TraceSpan::TraceSpan(const char* name) : name_(Tracing() ? name : nullptr), begin_ns_(name_ == nullptr ? 0 : RealClock().MonotonicNs()) {}

TraceSpan::~TraceSpan() {
  if (name_ == nullptr) return;
  ThreadSpans& mine = Mine();
  const std::lock_guard lock(mine.mutex);
  mine.spans.push_back({name_, begin_ns_, RealClock().MonotonicNs()});
}

Status WriteTrace(const std::string& program) {
  Registry& registry = Registry::Get();
  if (registry.dir == nullptr) return OkStatus();
  const std::string path = std::string(registry.dir) + "/" + program + "." + std::to_string(::getpid()) + ".json";
  std::ofstream out(path);
  out << "{\"traceEvents\":[";
  const char* between = "\n";
  const std::lock_guard lock(registry.mutex);
  for (size_t thread = 0; thread < registry.threads.size(); ++thread) {
    const std::lock_guard spans_lock(registry.threads[thread]->mutex);
    for (const Span& s : registry.threads[thread]->spans) {   // times in microseconds
      out << between << "{\"ph\":\"X\",\"pid\":" << ::getpid() << ",\"tid\":" << thread << ",\"name\":\"" << s.name << "\",\"ts\":" << s.begin_ns / 1000
          << ",\"dur\":" << (s.end_ns - s.begin_ns) / 1000 << "}";
      between = ",\n";
    }
  }
  out << "\n]}\n";
  out.close();
  return out ? OkStatus() : Status(InvalidArgument(path + ": the trace cannot be written; is $HOLDFAST_TRACE a directory?"));
}

}  // namespace holdfast
