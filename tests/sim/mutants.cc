// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/mutants.h"

#include <algorithm>
#include <string_view>

#include "ledger/base/forwarding_file_system.h"

namespace holdfast::sim {
namespace {

Mutant g_mutant = Mutant::kNone;

class MutantFile final : public WritableFile {
 public:
  MutantFile(std::unique_ptr<WritableFile> file, Mutant mutant) : file_(std::move(file)), mutant_(mutant) {}
  Status Append(ByteSpan data) override { return file_->Append(data); }
  Status Sync() override {
    if (mutant_ == Mutant::kSkipFsync) return OkStatus();
    const Status first = file_->Sync();
    return first.ok() || mutant_ != Mutant::kRetryFsync ? first : file_->Sync();
  }
  Status Close() override { return file_->Close(); }
  void DropCache() override { file_->DropCache(); }

 private:
  std::unique_ptr<WritableFile> file_;
  Mutant mutant_;
};

class MutantFs final : public ForwardingFileSystem {
 public:
  MutantFs(FileSystem& fs, Mutant mutant) : ForwardingFileSystem(fs), mutant_(mutant) {}
  Result<std::unique_ptr<WritableFile>> Create(const std::string& path, uint32_t mode) override {
    HOLDFAST_ASSIGN(auto file, fs_.Create(path, mode));
    return std::unique_ptr<WritableFile>(std::make_unique<MutantFile>(std::move(file), mutant_));
  }
  Status Link(const std::string& from, const std::string& to) override {
    if (mutant_ == Mutant::kTrustStaleListing) {
      const auto names = fs_.List(DirName(to));
      if (names.ok() && !std::binary_search(names->begin(), names->end(), BaseName(to))) return fs_.Replace(from, to);
    }
    const Status linked = fs_.Link(from, to);
    if (linked.ok() || mutant_ != Mutant::kReuseSlotNumber || !to.ends_with(".seg")) return linked;
    (void)fs_.Unlink(to);
    return fs_.Link(from, to);
  }

 private:
  Mutant mutant_;
};

}  // namespace

const std::vector<MutantInfo>& Mutants() {
  static const std::vector<MutantInfo> all = {
      {Mutant::kSkipFsync, "skip-fsync", false},
      {Mutant::kRetryFsync, "retry-fsync", false},
      {Mutant::kTrustStaleListing, "trust-stale-listing", false},
      {Mutant::kReuseSlotNumber, "reuse-slot-number", false},
      {Mutant::kIgnoreForeignClaim, "ignore-foreign-claim", true},
      {Mutant::kSkipTakenSlot, "skip-taken-slot", true},
      {Mutant::kFoldLastWins, "fold-last-wins", true},
  };
  return all;
}

std::optional<Mutant> MutantNamed(const std::string& name) {
  for (const MutantInfo& m : Mutants()) {
    if (name == m.name) return m.mutant;
  }
  return std::nullopt;
}

std::unique_ptr<FileSystem> WrapMutant(Mutant mutant, FileSystem& fs) {
  const bool in_files = std::any_of(Mutants().begin(), Mutants().end(), [&](const MutantInfo& m) { return m.mutant == mutant && !m.in_code; });
  return in_files ? std::make_unique<MutantFs>(fs, mutant) : nullptr;
}

void SetMutant(Mutant mutant) { g_mutant = mutant; }

}  // namespace holdfast::sim

// Declared in ledger/base/mutant.h, which production builds see without a body behind it.
namespace holdfast {
bool MutantIs(const char* name) {
  const auto& all = sim::Mutants();
  return std::any_of(all.begin(), all.end(), [&](const sim::MutantInfo& m) { return m.mutant == sim::g_mutant && std::string_view(m.name) == name; });
}
}  // namespace holdfast
