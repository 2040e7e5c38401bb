// SPDX-License-Identifier: Apache-2.0
//
// A whole run directory in a temporary place: a tiny random source, a job in two stages with cuts between them, evicted layers,
// seals, merge. Tests stop it where they like and damage what they like.
#pragma once

#include <functional>
#include <string>

#include "fsck/fsck.h"
#include "ledger/cluster/root.h"
#include "ledger/fold/run_state.h"
#include "ledger/segment/segment.h"
#include "tests/verify/tiny_output.h"

namespace holdfast::testing {

enum class Until { kFormat, kJob, kSamples, kEvicted, kSealed, kMerged, kDone };

struct RunOptions {
  Until until = Until::kDone;
  uint32_t samples = 3;
  // May change a sample record before it is committed.
  std::function<void(uint32_t stage, SampleRecord*)> edit_sample = {};
  // May change an evicted unit before it is committed.
  std::function<void(LayerRecord*)> edit_layer = {};
  // A sample of the last stage that is never committed although the stage is sealed; UINT32_MAX: none.
  uint32_t forget_sample = UINT32_MAX;
  // A sample that the job leaves out, although the first stage computed it; UINT32_MAX: none.
  uint32_t omit_sample = UINT32_MAX;
  // It is left out when the first stage is sealed already: that stage's layers and seal are made again.
  bool omit_late = false;
  // The job lies in this root, as jobs/<id>; "": in a directory of its own.
  std::string root = {};
  // Its claims say who made them.
  bool introduce = true;
  // Its owner is this very process, and lives; else one of this machine that is dead.
  bool alive = false;
};

class TinyRun {
 public:
  explicit TinyRun(const RunOptions& options = {});

  std::string dir, source, out;
  PosixFileSystem fs;
  RunLayout layout;

  std::string id() const { return JobIdOf(job_.uuid); }
  const Nonce& incarnation() const { return incarnation_; }
  FsckReport Fsck(bool deep = false, uint32_t threads = 2);
  std::string SlotPath(const std::string& stream, uint32_t seq) const { return layout.Slot(stream, seq); }
  uint32_t SlotCount(const std::string& stream);
  std::vector<std::string> PackFiles();
  // Publishes one more slot with these records, with whatever epoch and trailer the test wants to try.
  void AppendSlot(const std::string& stream, uint64_t epoch, std::vector<Record> records);
  void AppendRawSlot(const std::string& stream, uint64_t epoch, const std::vector<std::pair<Bytes, Bytes>>& entries, uint32_t records_said);
  // Overwrites a file, also a read-only one, through a new inode.
  void Rewrite(const std::string& path, ByteSpan bytes);
  void Delete(const std::string& path);

 private:
  SegmentTrailer NextTrailer(const std::string& stream, uint64_t epoch);
  void MakeSource();
  void Submit();
  void Calibrate(uint32_t stage);
  void Evict(uint32_t stage);
  void Seal(uint32_t stage);
  void Omit(StreamWriter* job);
  void OmitLate();
  void Merge();
  std::vector<uint32_t> Omitted() const { return omitted_ ? std::vector<uint32_t>{options_.omit_sample} : std::vector<uint32_t>{}; }
  bool Reached(Until step) const { return options_.until >= step; }
  std::unique_ptr<StreamWriter> Own(const std::string& stream, std::vector<Record> with_claim = {});
  StreamWriter* Writer(uint32_t stage);

  TempDir temp_;
  RunOptions options_;
  TinyOutput model_;
  Plan plan_;
  JobSpec job_;
  std::vector<std::vector<int32_t>> tokens_;
  bool omitted_ = false;
  Nonce incarnation_;
  RealClock clock_;
  std::unique_ptr<RunState> state_;
  std::map<uint32_t, std::unique_ptr<StreamWriter>> writers_;
};

}  // namespace holdfast::testing
