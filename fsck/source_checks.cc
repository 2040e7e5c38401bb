// SPDX-License-Identifier: Apache-2.0
//
// F070, F071: the source is what the job began with. While the job still has to read it a difference is an error, because resume
// refuses it; afterwards it is worth a warning only.
#include <algorithm>

#include "export/format/safetensors.h"
#include "export/verify/parallel.h"
#include "fsck/context.h"

namespace holdfast::fsck {
namespace {

constexpr const char* kAdvice = "restore the file, or begin a new job with another output for the changed model";
constexpr uint64_t kSidecarBytesMax = 256u << 20;

class SourceChecker {
 public:
  explicit SourceChecker(Context* c) : c_(*c), job_(*c->log.job) {
    const Plan* plan = c_.log.plan();
    for (size_t u = 0; plan != nullptr && u < plan->units.size(); ++u) weights_needed_ |= c_.log.Layer(static_cast<uint32_t>(u)) == nullptr;
  }

  void Run() {
    for (const SourceFile& f : job_.sidecars) CheckSidecar(f);
    std::vector<const SourceFile*> to_hash;
    for (size_t i = 0; i < job_.weights.size(); ++i) {
      if (CheckHeader(job_.weights[i]) && c_.options.deep) {
        to_hash.push_back(&job_.weights[i]);
        c_.bytes_total += job_.weights[i].size;
      }
    }
    (void)ParallelFor(c_.threads(), to_hash.size(), [&](size_t i) { return CheckContent(*to_hash[i]), OkStatus(); }, [&] { c_.Tick(); });
  }

 private:
  std::string Path(const SourceFile& f) const { return JoinPath(job_.source, f.name); }

  void Changed(const char* code, const SourceFile& f, bool needed, const std::string& what) {
    c_.Add(code, needed ? FsckSeverity::kError : FsckSeverity::kWarning, Path(f), what,
           needed ? kAdvice : "this job does not need the file any more");
  }
  bool SidecarsNeeded() const { return !c_.log.published && !c_.log.done; }

  void CheckSidecar(const SourceFile& f) {
    const auto bytes = c_.fs.ReadFile(Path(f), kSidecarBytesMax);
    if (bytes.code() == ErrorCode::kNotFound) {
      Changed("F070", f, SidecarsNeeded(), "the file is gone since the job began");
    } else if (!bytes.ok()) {
      c_.Unreadable(Path(f), bytes.error());
    } else if (bytes->size() != f.size || Sha256(*bytes) != f.sha256) {
      Changed("F070", f, SidecarsNeeded(), "the file changed since the job began");
    }
  }

  // Size and header; true when the file may be read on.
  bool CheckHeader(const SourceFile& f) {
    const auto info = c_.fs.Stat(Path(f));
    if (info.code() == ErrorCode::kNotFound) return Changed("F070", f, weights_needed_, "the file is gone since the job began"), false;
    if (!info.ok()) return c_.Unreadable(Path(f), info.error()), false;
    const auto file = SafetensorsFile::Open(c_.fs, Path(f));
    if (!file.ok()) {
      if (file.code() != ErrorCode::kInvalidArgument && file.code() != ErrorCode::kCorrupt) return c_.Unreadable(Path(f), file.error()), false;
      return Changed("F071", f, weights_needed_, file.error().message), false;
    }
    if (info->size != f.size) {
      return Changed("F070", f, weights_needed_, std::to_string(info->size) + " bytes, it had " + std::to_string(f.size) + " when the job began"), false;
    }
    if ((*file)->header_sha256() != f.header_sha256) return Changed("F070", f, weights_needed_, "its header changed since the job began"), false;
    if (info->mtime_ns != f.mtime_ns && !c_.options.deep && weights_needed_) {
      c_.Add("F070", FsckSeverity::kInfo, Path(f), "size and header are those of the job, but the file was touched since", "fsck --deep compares its content");
    }
    return true;
  }

  void CheckContent(const SourceFile& f) {
    const std::string stamp = "source " + c_.Stamp(Path(f));
    if (c_.Knows(stamp, f.size)) return;
    if (f.sha256.IsZero() ? CheckTensors(f) : CheckDigest(f)) c_.Learn(stamp, f.size);
  }

  bool CheckDigest(const SourceFile& f) {
    const auto digest = c_.HashFile(Path(f));
    if (!digest.ok()) return c_.Unreadable(Path(f), digest.error()), false;
    if (*digest != f.sha256) Changed("F070", f, weights_needed_, "its content changed since the job began");
    return *digest == f.sha256;
  }

  // A file too large to be hashed when the job began: the tensors that workers have read, one by one.
  bool CheckTensors(const SourceFile& f) {
    const auto file = SafetensorsFile::Open(c_.fs, Path(f));
    if (!file.ok()) return c_.Unreadable(Path(f), file.error()), false;
    for (const auto& [unit, read] : c_.log.source_reads) {
      for (const auto& [name, digest] : read.tensors) {
        const TensorInfo* t = (*file)->Find(name);
        if (t == nullptr) continue;
        const Result<Digest> got = HashTensor(**file, *t);
        if (!got.ok()) return c_.Unreadable(Path(f), got.error()), false;
        if (*got != digest) return Changed("F070", f, weights_needed_, "tensor " + name + " changed since a worker read it"), false;
      }
    }
    return true;
  }

  Result<Digest> HashTensor(const SafetensorsFile& file, const TensorInfo& t) {
    constexpr uint64_t kStep = 4u << 20;
    Sha256Hasher hasher;
    Bytes buffer(std::min(kStep, t.bytes));
    for (uint64_t at = 0; at < t.bytes; at += kStep) {
      const std::span<uint8_t> part(buffer.data(), std::min(kStep, t.bytes - at));
      HOLDFAST_TRY(file.file().Read(t.offset + at, part));
      hasher.Update(part);
      c_.bytes_done += part.size();
    }
    return hasher.Finish();
  }

  Context& c_;
  const JobSpec& job_;
  bool weights_needed_ = false;
};

}  // namespace

void CheckSource(Context* c) {
  if (c->log.job) SourceChecker(c).Run();
}

}  // namespace holdfast::fsck
