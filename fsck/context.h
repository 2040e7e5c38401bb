// SPDX-License-Identifier: Apache-2.0
//
// What the checks of fsck share: the report in the making, and the log as it was read - every record that counts, with the slot that
// said it, in the order in which the fold would meet them.
#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "fsck/fsck.h"
#include "fsck/memory.h"
#include "fsck/paced.h"
#include "fsck/salvage.h"
#include "ledger/format/layout.h"
#include "ledger/log/stream.h"
#include "ledger/records/records.h"

namespace holdfast::fsck {

template <class T>
struct Said {
  std::string stream;
  uint32_t seq = 0;
  RecordKey key;
  T value;
  std::string Where() const;   // "stage.00 slot 7"
};

// One stream's counting records, as raw material.
struct SaidRecord {
  std::string stream;
  uint32_t seq = 0;
  Record record;
  bool salvaged = false;   // out of a slot that fails as a whole: it is to be said again
};

// Who wrote a slot, stale ones included.
struct Writer {
  std::string stream;
  uint32_t seq = 0;
  Nonce incarnation;
};

struct Log {
  std::optional<Nonce> job_id;                       // of a root: its uuid
  bool damaged = false;                              // some slot is missing or unreadable
  bool reopened = false;                             // something was voided: it is to be computed again
  bool expired = false;                              // `jobctl gc` said that packs may be missing, and the job is done
  std::map<std::string, StreamState> streams;        // as the last sound slot leaves each
  uint64_t slots = 0;
  std::vector<SaidRecord> records;                   // job, merge, stages ascending, nodes; slot order within
  std::optional<JobSpec> job;
  std::map<uint32_t, Plan> plans;
  std::map<uint32_t, std::vector<int32_t>> tokens;
  std::map<uint32_t, std::vector<Said<SampleRecord>>> samples;   // by sample; lowest stage first, then slot order
  std::map<uint32_t, std::vector<Said<LayerRecord>>> layers;     // by unit, likewise
  std::vector<Said<SealRecord>> seals;
  std::map<uint32_t, MergeRecord> written;                       // by file, the latest
  std::optional<MergeRecord> published;
  std::optional<DoneRecord> done;
  std::map<uint32_t, SourceRead> source_reads;
  std::vector<uint32_t> omitted;                                 // samples that are left out, ascending
  std::vector<Writer> writers;                                   // slot order within a stream
  std::vector<Said<Claim>> claims;
  std::map<Nonce, Incarnation> lives;                            // incarnations that introduced themselves
  std::vector<Salvage> salvages;                                 // with options.salvage: what the above holds out of lost slots

  const Plan* plan() const { return plans.empty() ? nullptr : &plans.rbegin()->second; }
  // The record that counts, or null.
  const Said<SampleRecord>* Sample(uint32_t sample, uint32_t layer) const;
  const Said<LayerRecord>* Layer(uint32_t unit) const;
  bool Omitted(uint32_t sample) const;
  bool Counts(const LayerRecord& layer) const;   // made with the samples that are in
};

struct Context {
  Context(FileSystem& fs_in, const std::string& run_dir, const FsckOptions& options_in)
      : fs(fs_in), layout(run_dir), options(options_in) {}

  FileSystem& fs;
  const RunLayout layout;         // of a root: where its own streams lie
  const FsckOptions& options;
  bool is_root = false;
  std::string root_dir;           // of the root that a job belongs to; "" = a run directory of its own
  FsckReport report;
  Log log;
  std::set<std::string> packs_referenced;   // hex roots
  std::atomic<uint64_t> bytes_done{0};
  uint64_t bytes_total = 0;
  PacedFileSystem* paced = nullptr;         // what `fs` is; null: not a deep check
  std::unique_ptr<DeepMemory> memory;       // of a deep check; null: it remembers nothing

  void Add(const char* code, FsckSeverity severity, std::string object, std::string message, std::string advice, Remedies remedies = {});
  void Error(const char* code, std::string object, std::string message, std::string advice, Remedies remedies = {}) {
    Add(code, FsckSeverity::kError, std::move(object), std::move(message), std::move(advice), std::move(remedies));
  }
  // An error that means that committed data is gone.
  void Lost(const char* code, std::string object, std::string message, std::string advice, Remedies remedies = {});
  // Something that could not be read at all (permissions, I/O): bit 8.
  void Unreadable(const std::string& object, const holdfast::Error& error);

  // Was this found right by a check that was interrupted? Made of the stamps of the files that were read, each with its bytes.
  std::string Stamp(const std::string& path) const { return memory ? memory->Stamp(path) : ""; }
  bool Knows(const std::string& what, uint64_t bytes) { return memory && !what.empty() && memory->Knows(what, bytes); }
  void Learn(const std::string& what, uint64_t bytes) {
    if (memory && !what.empty()) memory->Learn(what, bytes);
  }
  // SHA-256 of a whole file, counted as progress.
  Result<Digest> HashFile(const std::string& path);
  void Tick() const {
    if (options.deep && options.on_progress) options.on_progress(bytes_done, std::max(bytes_total, bytes_done.load()));
  }
  uint32_t threads() const { return std::min(std::max(options.threads, 1u), 16u); }
  // "jobctl resume DIR", as it is typed for this job
  std::string Resume() const;
  // What is left where nothing says any more what the job was.
  std::string BeginAgain() const;
  // "jobctl fsck DIR --repair"
  std::string Repair() const { return "jobctl fsck " + layout.root() + " --repair"; }

 private:
  std::mutex mutex_;   // guards report.findings and report.exit_status
};

// How the slots of `dir` were committed, where that was by rename; null: by link, `fs` itself will do.
std::unique_ptr<FileSystem> FileSystemOf(FileSystem& fs, const std::string& dir);

// All checks of one run directory.
void CheckRun(Context* c);
// All checks of a root and of every job in it.
void CheckRoot(Context* c);
bool LooksLikeARoot(FileSystem& fs, const std::string& dir);
// The root that `dir` lies in as jobs/<id>, or "".
std::string RootOf(FileSystem& fs, const std::string& dir);
// F032. Incarnations of daemons stand in the root; they are read when a run directory alone does not explain a claim.
void CheckClaims(Context* c);

// F001: FORMAT, or ROOT. False: a newer format, nothing else can be judged.
bool CheckFormatFile(Context* c);
bool CheckRootFile(Context* c);
// F003-F031: reads every slot of every stream into c->log.
void ReadLog(Context* c);
// F020, F040-F044: payloads, samples, seals, provenance.
void FoldRecords(Context* c);
void CheckSamples(Context* c);
void CheckSeals(Context* c);
// F050-F052, F060, F061: packs and evicted layers.
void CheckPacks(Context* c);
void CheckLayers(Context* c);
// F070, F071.
void CheckSource(Context* c);
// F080, F081.
void CheckOutput(Context* c);
// F090-F092.
void CheckLeftovers(Context* c);
void CheckTmp(Context* c);
// F062, F093.
void Reproduce(Context* c);
void CheckEnvironment(Context* c);

// An empty plan that names the owners of a directory's streams.
RepairPlan WhoWorks(FileSystem& fs, const std::string& dir);
// What would mend all that was found, for the report.
RepairPlan MakeRepairPlan(const Context& c);

}  // namespace holdfast::fsck
