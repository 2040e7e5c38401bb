// SPDX-License-Identifier: Apache-2.0
//
// The order of things, and what each crash leaves:
//   M(begun) | per file: write, fsync, M(written) | small files, fsync | SHA256SUMS, fsync | fsync staging | rename | fsync parent |
//   M(published) | remove stagings
// Until the rename the output does not exist; after it, it is complete. A crash between rename and M(published) is recognised by the
// job's id in holdfast.json and the manifest beside it.
//
// An export does the same without a word in the ledger, so that a crash leaves a staging that nobody goes on with, or the whole directory.
#include "export/merge/merge.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>

#include "export/merge/lanes.h"
#include "export/merge/metadata.h"
#include "export/merge/output_writer.h"
#include "ledger/base/fail_point.h"

namespace holdfast {
namespace {

// A stream keeps two cores busy: one hashes the file, the other verifies and decodes. One core streams files in one order, always.
uint32_t LanesFor(uint32_t threads) { return threads == 1 ? 0 : std::clamp(threads / 2, 1u, kMergeLanesMax); }

class Merge {
 public:
  // `stream`: null for an export. `job`: the state's, or for an export with another output.
  Merge(FileSystem& fs, RunState& state, StreamWriter* stream, const JobSpec& job, OutputLayout layout, const MergeOptions& options,
        const std::string& staging_prefix, uint64_t epoch)
      : fs_(fs),
        state_(state),
        stream_(stream),
        options_(options),
        job_(job),
        plan_(state.plan()),
        omitted_(state.OmittedSamples()),
        output_(PlanOutput(plan_, job_.shard_bytes, layout)),
        staging_(fs, job_, staging_prefix, epoch),
        units_(fs, state.layout()),
        files_(output_.files.size()),
        lanes_(LanesFor(options.threads), static_cast<uint32_t>(files_.size()),
               {.stream = [this](uint32_t i) { return StreamFile(i); },
                .settle = [this](uint32_t i) { return SettleFile(i); },
                .commit = [this](uint32_t i) { return CommitFile(i); },
                .progress = [this] { ReportProgress(); }}) {}

  Result<Digest> Run() {
    HOLDFAST_ASSIGN(const bool there, fs_.Exists(job_.out));
    if (there) return stream_ != nullptr ? AcceptPublished() : AcceptExported();
    HOLDFAST_TRY(OpenUnits());
    if (stream_ == nullptr) HOLDFAST_TRY(MakeMetadata(fs_, job_, Numerics(), omitted_, plan_, output_));   // refuses what it can before anything is written
    HOLDFAST_TRY(Commit(kWholeOutput, MergeRecord::State::kBegun, job_.out, 0, {}));
    HOLDFAST_TRY(FailPoint("merge.begun", job_.out));
    HOLDFAST_TRY(staging_.Create());
    CountTotal();
    RecallWritten();
    HOLDFAST_TRY(lanes_.Run());
    HOLDFAST_TRY(WriteMetadata());
    HOLDFAST_TRY(PublishDirectory());
    HOLDFAST_TRY(
        Commit(kWholeOutput, MergeRecord::State::kPublished, job_.out, manifest_size_, manifest_));
    if (stream_ != nullptr) HOLDFAST_TRY(staging_.RemoveAll());
    return manifest_;
  }

 private:
  Status Commit(uint32_t file, MergeRecord::State state, const std::string& name, uint64_t size,
                const Digest& sha256) {
    if (stream_ == nullptr) return OkStatus();
    MergeRecord m;
    m.file = file;
    m.state = state;
    m.name = name;
    m.staging = staging_.path();
    m.size = size;
    m.sha256 = sha256;
    const RecordKey key{.cls = RecordClass::kMerge,
                        .stage = 0,
                        .a = file,
                        .b = 0,
                        .part = static_cast<uint32_t>(state)};
    return stream_->Append({MakeControl(key, m.ToJson())});
  }

  // The output directory exists: ours and complete, or somebody else's.
  Result<Digest> AcceptPublished() {
    const std::string manifest_path = JoinPath(job_.out, kManifestFile);
    const Error foreign = Foreign();
    const auto text = fs_.ReadFile(manifest_path);
    if (text.code() == ErrorCode::kNotFound || text.code() == ErrorCode::kResourceExhausted)
      return foreign;
    if (!text.ok()) return text.error();
    const Digest digest = Sha256(*text);
    const bool in_log = state_.published().has_value();
    if (in_log && state_.published()->sha256 != digest) return foreign;
    if (!in_log) {
      HOLDFAST_ASSIGN(const Digest expected, ExpectedManifest());
      if (digest != expected) return foreign;
    }
    const auto listed = ParseManifest(AsText(*text), manifest_path);
    if (!listed.ok()) return foreign;
    HOLDFAST_TRY(CheckPublishedFiles(*listed));
    HOLDFAST_TRY(fs_.SyncDir(DirName(job_.out)));
    if (!in_log)
      HOLDFAST_TRY(
          Commit(kWholeOutput, MergeRecord::State::kPublished, job_.out, text->size(), digest));
    HOLDFAST_TRY(staging_.RemoveAll());
    return digest;
  }

  Error Foreign() const {
    const std::string exists = job_.out + ": exists and is not the output of this job";
    if (stream_ != nullptr) return {ErrorCode::kAlreadyExists, exists + ". Move it away, then run `jobctl resume`"};
    return {ErrorCode::kAlreadyExists, exists + " in this layout. Move it away, or choose another --out"};
  }

  // An export whose directory is there: by an earlier one that could not say so any more, if everything that can be known of it without writing
  // it once more agrees.
  Result<Digest> AcceptExported() {
    const auto text = fs_.ReadFile(JoinPath(job_.out, kManifestFile));
    if (!text.ok() && text.code() != ErrorCode::kNotFound && text.code() != ErrorCode::kResourceExhausted) return text.error();
    const auto listed = text.ok() ? ParseManifest(AsText(*text), job_.out) : Result<std::map<std::string, Digest>>(text.error());
    if (!listed.ok()) return Foreign();
    HOLDFAST_ASSIGN(const auto metadata, MakeMetadata(fs_, job_, Numerics(), omitted_, plan_, output_));
    if (listed->size() != metadata.size() + output_.files.size()) return Foreign();
    for (const auto& [name, bytes] : metadata) {
      const auto row = listed->find(name);
      if (row == listed->end() || row->second != Sha256(bytes)) return Foreign();
    }
    for (const OutputFile& file : output_.files) {
      const auto info = fs_.Stat(JoinPath(job_.out, file.name));
      if (!info.ok() || info->size != file.layout.file_size || !listed->contains(file.name)) return Foreign();
    }
    HOLDFAST_TRY(fs_.SyncDir(DirName(job_.out)));
    return Sha256(*text);
  }

  // A job of a cluster may run on any class; what it ran on in the end is what `jobctl run` would have pinned.
  std::string Numerics() const {
    return job_.numerics == kAnyNumerics ? EffectiveNumerics(state_) : job_.numerics;
  }

  // What SHA256SUMS of this job must be, from the log and the source alone: tells our own output, renamed into place by a process that
  // died before it could say so, from anybody else's. Zero (which nothing hashes to) while files are missing in the log.
  Result<Digest> ExpectedManifest() {
    std::map<std::string, Digest> digests;
    for (uint32_t i = 0; i < output_.files.size(); ++i) {
      const auto written = state_.merge_written().find(i);
      if (written == state_.merge_written().end()) return Digest{};
      digests[output_.files[i].name] = written->second.sha256;
    }
    HOLDFAST_ASSIGN(const auto metadata, MakeMetadata(fs_, job_, Numerics(), omitted_, plan_, output_));
    for (const auto& [name, bytes] : metadata) digests[name] = Sha256(bytes);
    return Sha256(AsBytes(MakeManifest(digests)));
  }

  // Every file that the plan wants is there with its size and under the digest that M(written) recorded.
  Status CheckPublishedFiles(const std::map<std::string, Digest>& listed) {
    for (uint32_t i = 0; i < output_.files.size(); ++i) {
      const OutputFile& file = output_.files[i];
      const std::string path = JoinPath(job_.out, file.name);
      const auto info = fs_.Stat(path);
      if (!info.ok() && info.code() != ErrorCode::kNotFound) return info.error();
      const auto row = listed.find(file.name);
      const auto written = state_.merge_written().find(i);
      const bool agrees = written == state_.merge_written().end() ||
                          (row != listed.end() && written->second.sha256 == row->second);
      if (!info.ok() || info->size != file.layout.file_size || row == listed.end() || !agrees) {
        return Corrupt(path + ": the published output is not what the log says. Run `jobctl fsck " +
                       state_.layout().root() + "`");
      }
    }
    return OkStatus();
  }

  Status OpenUnits() {
    for (const UnitPlan& u : plan_.units) {
      const LayerRecord* record = state_.Layer(u.id);
      if (record == nullptr)
        return InvalidArgument("merge: " + u.label + " has not been evicted yet");
      units_.Add(*record);
    }
    return OkStatus();
  }

  // What lanes know of a file; nobody but its lane uses it before it is committed.
  struct File {
    std::optional<MergeRecord> written;  // by an earlier claim, as the plan wants it
    std::unique_ptr<OutputWriter> writer;
    Digest digest;
    bool adopted = false;
  };

  // The state changes with every commit, so what it says of the files is taken down before the lanes begin.
  void RecallWritten() {
    if (stream_ == nullptr) return;
    for (uint32_t i = 0; i < files_.size(); ++i) {
      const auto it = state_.merge_written().find(i);
      const bool known = it != state_.merge_written().end() &&
                         it->second.name == output_.files[i].name &&
                         it->second.size == output_.files[i].layout.file_size;
      if (known) files_[i].written = it->second;
    }
  }

  Status StreamFile(uint32_t index) {
    const OutputFile& plan = output_.files[index];
    File& file = files_[index];
    const MergeRecord* written = file.written ? &*file.written : nullptr;
    if (written != nullptr) {
      HOLDFAST_TRY(Proceed());
      HOLDFAST_ASSIGN(file.adopted, staging_.Adopt(*written));
      file.digest = written->sha256;
      if (file.adopted) return OkStatus();
    }
    if (stream_ != nullptr) staging_.DropUnfinished(plan.name, written);   // older stagings of an export may be alive
    file.writer = std::make_unique<OutputWriter>(
        staging_, units_, plan,
        OutputWriter::Options{.threads = ThreadsOfALane(),
                              .proceed = [this] { return Proceed(); },
                              .on_written = [this](uint64_t bytes) { Report(bytes, 0); }});
    HOLDFAST_ASSIGN(file.digest, file.writer->Stream());
    return OkStatus();
  }
  Status SettleFile(uint32_t index) {
    File& file = files_[index];
    return file.adopted ? OkStatus() : file.writer->Settle();
  }
  Status CommitFile(uint32_t index) {
    const OutputFile& plan = output_.files[index];
    File& file = files_[index];
    file.writer.reset();
    if (!file.adopted) {
      HOLDFAST_TRY(Commit(index, MergeRecord::State::kWritten, plan.name, plan.layout.file_size, file.digest));
      HOLDFAST_TRY(FailPoint("merge.written", plan.name));
    }
    digests_[plan.name] = file.digest;
    Report(file.adopted ? plan.layout.file_size : 0, 1);
    return OkStatus();
  }

  Status Proceed() const {
    if (options_.stop != nullptr && options_.stop->load()) return Stopped("merge was asked to stop");
    return lanes_.failed() ? Stopped("another file of the output failed") : OkStatus();
  }
  uint32_t ThreadsOfALane() const {
    const uint32_t streams = std::min<uint32_t>(LanesFor(options_.threads), static_cast<uint32_t>(files_.size()));
    return options_.threads / std::max(1u, streams);
  }

  Status WriteMetadata() {
    HOLDFAST_ASSIGN(const auto files, MakeMetadata(fs_, job_, Numerics(), omitted_, plan_, output_));
    for (const auto& [name, bytes] : files) {
      if (options_.stop != nullptr && options_.stop->load())
        return Stopped("merge was asked to stop");
      HOLDFAST_TRY(FailPoint("merge.metadata", name));
      HOLDFAST_TRY(staging_.WriteSmall(name, bytes));
      digests_[name] = Sha256(bytes);
    }
    const std::string manifest = MakeManifest(digests_);
    HOLDFAST_TRY(FailPoint("merge.metadata", kManifestFile));
    HOLDFAST_TRY(staging_.WriteSmall(kManifestFile, AsBytes(manifest)));
    manifest_ = Sha256(AsBytes(manifest));
    manifest_size_ = manifest.size();
    return fs_.SyncDir(staging_.path());
  }

  // A rename may succeed and report an error, or lose to an owner that published the same bytes: what lies there decides.
  Status PublishDirectory() {
    HOLDFAST_TRY(FailPoint("merge.before_rename", job_.out));
    const Status renamed = fs_.RenameExclusive(staging_.path(), job_.out);
    if (!renamed.ok()) {
      const auto there = fs_.ReadFile(JoinPath(job_.out, kManifestFile));
      if (!there.ok() || Sha256(*there) != manifest_) {
        if (renamed.code() != ErrorCode::kAlreadyExists) return renamed;
        return Foreign();
      }
    }
    HOLDFAST_TRY(fs_.SyncDir(DirName(job_.out)));
    return FailPoint("merge.after_rename", job_.out);
  }

  void CountTotal() {
    progress_.files_total = static_cast<uint32_t>(output_.files.size());
    for (const OutputFile& f : output_.files) progress_.bytes_total += f.layout.file_size;
  }
  void Report(uint64_t bytes, uint32_t files) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      progress_.bytes_done += bytes;
      progress_.files_done += files;
    }
    lanes_.Wake();
  }
  void ReportProgress() {
    std::unique_lock<std::mutex> lock(mutex_);
    const MergeProgress progress = progress_;
    lock.unlock();
    if (options_.on_progress) options_.on_progress(progress);
  }

  FileSystem& fs_;
  RunState& state_;
  StreamWriter* const stream_;   // null: an export
  const MergeOptions& options_;
  const JobSpec job_;  // copies: what is committed is applied to the state while we run
  const Plan plan_;
  const std::vector<uint32_t> omitted_;  // samples that the result does without
  const OutputPlan output_;
  Staging staging_;
  UnitReader units_;
  std::vector<File> files_;
  std::map<std::string, Digest> digests_;  // of every file but the manifest
  Digest manifest_;
  uint64_t manifest_size_ = 0;
  std::mutex mutex_;  // guards `progress_`
  MergeProgress progress_;
  Lanes lanes_;  // last: its steps use the rest
};

}  // namespace

uint64_t OutputBytes(const OutputPlan& plan) {
  constexpr uint64_t kSidecars = 64u << 20;  // tokenizers are the largest, some 35 MB
  constexpr uint64_t kIndexRow = 256;
  uint64_t bytes = kSidecars;
  for (const OutputFile& f : plan.files)
    bytes += f.layout.file_size + f.layout.tensors.size() * kIndexRow;
  return bytes;
}

Result<Digest> RunMerge(FileSystem& fs, RunState& state, StreamWriter& merge,
                        const MergeOptions& options) {
  if (!state.has_plan())
    return InvalidArgument("merge: " + state.layout().root() + " has no plan yet");
  HOLDFAST_ASSIGN(const OutputLayout layout, ParseLayout(state.job().layout));
  HOLDFAST_ASSIGN(const std::string prefix, StagingPrefix(fs, state.layout(), state.job()));
  return Merge(fs, state, &merge, state.job(), layout, options, prefix, merge.epoch()).Run();
}

Result<Digest> RunExport(FileSystem& fs, RunState& state, const ExportTarget& target, const MergeOptions& options) {
  if (!state.has_plan())
    return InvalidArgument("export: " + state.layout().root() + " has no plan yet");
  JobSpec job = state.job();
  job.out = target.out;
  return Merge(fs, state, nullptr, job, target.layout, options, target.staging_prefix, target.attempt).Run();
}

}  // namespace holdfast
