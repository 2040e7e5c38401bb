// SPDX-License-Identifier: Apache-2.0
//
// F080, F081: the files that merge wrote, in their staging directory or published. Deep: the whole output as `jobctl verify` judges it.
#include "export/format/safetensors.h"
#include "export/verify/verify.h"
#include "fsck/context.h"

namespace holdfast::fsck {
namespace {

constexpr uint64_t kManifestMax = 64u << 20;

class OutputChecker {
 public:
  explicit OutputChecker(Context* c) : c_(*c), log_(c->log), out_(c->log.job->out) {}

  void Run() {
    if (log_.published || log_.done) {
      CheckPublished();
    } else if (const auto renamed = c_.fs.Exists(JoinPath(out_, "SHA256SUMS")); renamed.ok() && *renamed && !log_.written.empty()) {
      c_.Add("F081", FsckSeverity::kInfo, out_, "the output is in its place, but the log does not say so yet", c_.Resume() + " checks it and finishes the job");
    } else {
      for (const auto& [number, m] : log_.written) CheckStaged(m);
    }
  }

 private:
  std::string Advice() const {
    return "`" + c_.Repair() + "` (or move " + out_ + " away by hand), then `" + c_.Resume() + "` writes it again from the ledger";
  }
  void Bad(const std::string& object, const std::string& what) {
    c_.Error("F080", object, what, Advice(), Remedy::RenewOutput());
  }

  // A file in the staging of a merge that is not finished. What is missing there is simply written again.
  void CheckStaged(const MergeRecord& m) {
    const std::string path = JoinPath(m.staging, m.name);
    const auto info = c_.fs.Stat(path);
    if (info.code() == ErrorCode::kNotFound) {
      c_.Add("F080", FsckSeverity::kWarning, path, "written once, but not there any more", c_.Resume() + " writes it again");
    } else if (!info.ok()) {
      c_.Unreadable(path, info.error());
    } else if (info->size != m.size || (c_.options.deep && !HasDigest(path, m.sha256))) {
      c_.Error("F080", path, "not the bytes that merge wrote", c_.Resume() + " writes it again",
               {Remedy::MoveAway(path), Remedy::Void(RunLayout::MergeStream(), {RecordClass::kMerge, 0, m.file, 0, static_cast<uint32_t>(m.state)})});
    }
  }

  bool HasDigest(const std::string& path, const Digest& want) {
    const auto digest = c_.HashFile(path);
    if (!digest.ok()) c_.Unreadable(path, digest.error());
    return !digest.ok() || *digest == want;
  }

  void CheckPublished() {
    if (!log_.published) c_.Error("F081", "log/merge", "the job is recorded as done, but not as published", "`" + c_.Repair() + "`, then " + c_.Resume(),
                                  Remedy::Void(RunLayout::MergeStream(), {RecordClass::kDone, 0, 0, 0, 0}));
    const auto sums = c_.fs.ReadFile(JoinPath(out_, "SHA256SUMS"), kManifestMax);
    if (sums.code() == ErrorCode::kNotFound) {
      const auto there = c_.fs.Exists(out_);
      c_.Error("F081", out_, there.ok() && *there ? "published, but its SHA256SUMS is missing" : "published, but the directory is not there (moved, or deleted)",
               "if it was moved on purpose this is all; otherwise `" + c_.Resume() + "` writes it again from the ledger", Remedy::RenewOutput());
      return;
    }
    if (!sums.ok()) return c_.Unreadable(JoinPath(out_, "SHA256SUMS"), sums.error());
    CheckManifest(*sums);
    for (const auto& [number, m] : log_.written) CheckFile(m, std::string(AsText(*sums)));
    CheckIndex();
    if (c_.options.deep) CheckDeep();
  }

  void CheckManifest(ByteSpan sums) {
    const Digest digest = Sha256(sums);
    const bool as_published = !log_.published || log_.published->sha256.IsZero() || log_.published->sha256 == digest;
    if (as_published && (!log_.done || log_.done->manifest == digest)) return;
    c_.Error("F081", JoinPath(out_, "SHA256SUMS"), "not the manifest that was published: the directory was changed, or is another one",
             Advice(), Remedy::RenewOutput());
  }

  void CheckFile(const MergeRecord& m, const std::string& sums) {
    const std::string path = JoinPath(out_, m.name);
    const auto info = c_.fs.Stat(path);
    if (info.code() == ErrorCode::kNotFound) return Bad(path, "the file is missing");
    if (!info.ok()) return c_.Unreadable(path, info.error());
    if (info->size != m.size) return Bad(path, std::to_string(info->size) + " bytes, merge wrote " + std::to_string(m.size));
    if (sums.find(m.sha256.Hex() + "  " + m.name + "\n") == std::string::npos) Bad(path, "SHA256SUMS does not list it with the digest that merge recorded");
  }

  // Headers parse, and the index covers every tensor once.
  void CheckIndex() {
    const auto model = SourceModel::Open(c_.fs, out_);
    if (model.ok()) return;
    if (model.code() == ErrorCode::kInvalidArgument || model.code() == ErrorCode::kCorrupt || model.code() == ErrorCode::kNotFound) {
      Bad(out_, model.error().message);
    } else {
      c_.Unreadable(out_, model.error());
    }
  }

  // As one piece: what is wrong may lie between files.
  void CheckDeep() {
    std::string stamp = "output " + c_.Stamp(JoinPath(out_, "SHA256SUMS"));
    uint64_t bytes = 0;
    for (const auto& [number, m] : log_.written) stamp += c_.Stamp(JoinPath(out_, m.name)), bytes += 2 * m.size;
    if (c_.Knows(stamp, bytes)) return;
    VerifyOptions options;
    options.threads = c_.threads();
    options.expected = log_.plan();
    const uint64_t before = c_.bytes_done, total = c_.bytes_total;
    options.on_progress = [&](uint64_t done, uint64_t all) {
      c_.bytes_done = before + done;
      c_.bytes_total = total + all;
      c_.Tick();
    };
    const auto verified = VerifyOutput(c_.fs, out_, options);
    if (!verified.ok()) return c_.Unreadable(out_, verified.error());
    if (verified->ok()) c_.Learn(stamp, bytes);
    for (const VerifyFinding& f : verified->findings) {
      if (f.severity == Severity::kError) Bad(JoinPath(out_, f.object), f.code + ": " + f.message);
    }
  }

  Context& c_;
  const Log& log_;
  const std::string out_;
};

}  // namespace

void CheckOutput(Context* c) {
  if (c->log.job) OutputChecker(c).Run();
}

}  // namespace holdfast::fsck
