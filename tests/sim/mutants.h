// SPDX-License-Identifier: Apache-2.0
//
// Broken variants, to prove that the checkers notice. Those that misuse the file system are wrapped around it here; those in the ledger's own
// code are compiled into holdfast-sim-mutants alone, from the same sources with HOLDFAST_MUTANTS defined (ledger/base/mutant.h).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ledger/base/file_system.h"

namespace holdfast::sim {

enum class Mutant : uint8_t {
  kNone,
  kSkipFsync,            // fsync says yes and does nothing
  kRetryFsync,           // after a failed fsync, once more
  kTrustStaleListing,    // a name that a listing does not show is free: renamed over instead of linked
  kReuseSlotNumber,      // after a doubtful link the name is removed and taken again
  kIgnoreForeignClaim,   // code: an owner that meets a newer claim goes on
  kSkipTakenSlot,        // code: an owner that finds its slot taken takes the next number without reading
  kFoldLastWins,         // code: of several records for a key the last counts
};

struct MutantInfo {
  Mutant mutant;
  const char* name;
  bool in_code;          // needs holdfast-sim-mutants
};
const std::vector<MutantInfo>& Mutants();
std::optional<Mutant> MutantNamed(const std::string& name);

// Null when this mutant does not live in the file system.
std::unique_ptr<FileSystem> WrapMutant(Mutant mutant, FileSystem& fs);
// What compiled-in mutants ask.
void SetMutant(Mutant mutant);

}  // namespace holdfast::sim
