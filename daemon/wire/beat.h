// SPDX-License-Identifier: Apache-2.0
//
// What a daemon says of itself, to peers over ZeroMQ every second and into <root>/beats/ every two. Soft state: a reader judges life by
// `count` moving against its own clock, never by `wall_ns`. Pure encoding; canonical JSON, schema in docs/wire-protocol.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ledger/base/ids.h"
#include "ledger/base/result.h"

namespace holdfast {

inline constexpr size_t kBeatBytesMax = 256u << 10;
// Bounds of the lists. Encode() keeps them by leaving out (of tasks, those that are done go first), and it shortens strings and puts them
// on one line; Decode() refuses what does not keep them. So every beat of a real node, with real job ids, decodes.
inline constexpr size_t kBeatDevicesMax = 64;
inline constexpr size_t kBeatTasksMax = 96, kBeatJobsMax = 64, kBeatWarningsMax = 16, kBeatsMax = 256;

struct TaskBeat {                   // one stage, or the merge, of one job on this node
  std::string job;                  // 12 hex digits
  uint16_t stage = 0;               // kMergeTask: the merge
  // "waiting" (memory is taken by an earlier stage), "running", "done", "refused" (this node cannot: source missing, version),
  // "failed" (gave up, or its input was refused for every node), "fenced", "paused" (memory pressure), "stopping"
  std::string state;
  std::string phase;                // WorkerReport::phase, for merge "merge"
  uint64_t samples_done = 0, samples_total = 0, units_done = 0, units_total = 0;
  uint64_t bytes_read = 0, bytes_written = 0, bytes_total = 0, rss_bytes = 0, rss_peak_bytes = 0, planned_bytes = 0;
  uint64_t cuts_received = 0, cuts_from_packs = 0, chunks_dropped = 0;
  uint32_t window = 0, threads = 0, restarts = 0, out_of_memory = 0;
  int64_t pid = 0;
  std::string last_death;           // "out of memory", "signal 9", "exit 1", or empty
  std::string error_code, error;    // of "refused" and "failed"
  std::string device;               // of a node that has several: where it is to run; else ""
};
struct DeviceBeat {                 // one of several devices of a node
  std::string name, numerics;       // "cuda:1"
  uint64_t memory_bytes = 0, speed = 0;
  uint64_t host_bytes = 0;          // as Beat's, of this device
};
inline constexpr uint16_t kMergeTask = 0xffff;

struct Beat {
  Nonce root;                       // uuid of the root
  std::string node;
  Nonce incarnation;
  uint64_t count = 0;               // rises with every beat of this incarnation. ControlLink adds to it while the owner is stalled, so
                                    // compare counts that came by one way (link, file) with each other only
  uint64_t wall_ns = 0;             // for people
  std::string hostname, endpoint, public_key, version, numerics, device;
  uint64_t pid = 0, memory_bytes = 0, memory_planned = 0, memory_available = 0, rss_bytes = 0, speed = 0, threads = 0;
  uint64_t host_bytes = 0;          // of a GPU with memory of its own, which memory_bytes is: what tasks there may take of the host's besides; else 0
  uint32_t pressure = 0;            // PSI memory "some avg10", in hundredths of a percent
  bool draining = false, paused = false;
  uint64_t storage_stalled_ms = 0;  // how long the ledger thread has been waiting for the shared directory; 0: not
  std::vector<std::string> coordinates;   // job ids
  std::vector<std::string> warnings;      // for `jobctl nodes`: "root is not shared with n2", "3 handshakes refused", ...
  std::vector<TaskBeat> tasks;
  std::vector<DeviceBeat> devices;  // of a node that has several, which then are what memory_bytes and speed add up; empty: one, see `device`
  std::string Encode() const;
  static Result<Beat> Decode(std::string_view text);   // kCorrupt, kUnsupported; survives anything
};

// Daemon or jobctl -> daemon, one JSON frame on the control socket.
struct ControlMessage {
  enum class Kind : uint8_t {
    kBeat,        // carries `beat`
    kHint,        // something new in stream `stream` of job `job` ("" = the root): look now
    kAskBeats,    // jobctl: what do you know?
    kBeats,       // the answer: the beats of every live node that this one hears, its own first
  };
  Kind kind = Kind::kBeat;
  Nonce root;                       // uuid of the sender's root
  std::vector<Beat> beats;          // one for kBeat; for kBeats at most kBeatsMax and as many as fit kControlBytesMax
  std::string job, stream;
  std::string Encode() const;
  static Result<ControlMessage> Decode(std::string_view text);
};

}  // namespace holdfast
