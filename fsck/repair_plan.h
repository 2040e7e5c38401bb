// SPDX-License-Identifier: Apache-2.0
//
// Everything that a repair of one directory would do, decided before anything is done: from the findings' remedies, and from what the
// records mean to each other. A plan only names; the repairer (repair.h) looks again before each step.
//   - A sample that is wrong takes with it what was computed behind it, the layers whose amax it went into, and the output.
//   - A sample or layer that is merely lost is computed again to the same bytes, so that everything else stays.
//   - A seal never outlives what it seals.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "fsck/remedy.h"
#include "ledger/base/ids.h"

namespace holdfast {

struct RepairPlan {
  struct Burial {
    std::string stream;
    uint32_t seq = 0;
    std::string code, why;
  };
  struct Strike {
    std::string stream;
    RecordKey key;
    std::string code, why;
  };
  struct Move {
    std::string path;
    std::string code, why;
  };
  struct Saying {                       // a record of a lost slot, to be said again (--salvage)
    std::string stream;
    uint32_t seq = 0;                   // of the lost slot
    std::string code;
    Record record;
  };
  struct Owner {                        // a stream that is claimed and was not released
    std::string stream;
    Claim claim;
    std::optional<Incarnation> who;     // as it introduced itself
  };

  std::string dir;                      // run directory, or root (its own streams)
  std::string root;                     // of a job of a root: that root; else ""
  bool is_root = false;
  Nonce job;                            // uuid that the trailers carry
  std::vector<Burial> burials;          // by stream and number
  std::vector<Strike> strikes;
  std::vector<Move> moves;
  std::vector<Saying> sayings;          // a sample's two parts behind one another
  std::vector<Owner> owners;
  bool corrects = false;                // some error goes away (else only leftovers are put aside)
  bool reopens = false;                 // work of the job has to be done again

  bool empty() const { return burials.empty() && strikes.empty() && moves.empty() && sayings.empty(); }
  uint64_t Salvaged() const;                // statements among `sayings`
  std::vector<std::string> Lines() const;   // for people, one a step
};

// "S sample 3 from layer 0", as a key is called in plans and manifests.
std::string KeyText(const RecordKey& key);

}  // namespace holdfast
