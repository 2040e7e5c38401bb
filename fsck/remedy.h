// SPDX-License-Identifier: Apache-2.0
//
// What would mend a finding, as the check that found it knows. What follows for the rest of the job is the plan's business
// (repair_plan.h).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "ledger/records/records.h"

namespace holdfast {

struct Remedy {
  enum class What : uint8_t {
    kNone,
    kBury,          // slot `seq` of `stream`: a tombstone takes its place, a copy of the file goes to the quarantine
    kVoid,          // what `stream` says under `key` counts as not said; what was made from it stays right
    kVoidWrong,     // the same, and what was made from it goes with it
    kMoveAway,      // `paths` go to the quarantine
    kRenewOutput,   // the output, as far as there is one, goes to the quarantine and is written again
  };
  What what = What::kNone;
  std::string stream;
  uint32_t seq = 0;
  RecordKey key;
  std::vector<std::string> paths;   // as the file system has them

  static Remedy Bury(std::string stream, uint32_t seq) { return {What::kBury, std::move(stream), seq, {}, {}}; }
  static Remedy Void(std::string stream, const RecordKey& key) { return {What::kVoid, std::move(stream), 0, key, {}}; }
  static Remedy VoidWrong(std::string stream, const RecordKey& key) { return {What::kVoidWrong, std::move(stream), 0, key, {}}; }
  static Remedy MoveAway(std::string path) { return {What::kMoveAway, {}, 0, {}, {std::move(path)}}; }
  static Remedy RenewOutput() { return {What::kRenewOutput, {}, 0, {}, {}}; }
};

// Several of them, made from one where one is enough.
struct Remedies : std::vector<Remedy> {
  using std::vector<Remedy>::vector;
  Remedies(Remedy one) : std::vector<Remedy>{} {   // NOLINT(google-explicit-constructor): a finding rarely has more
    if (one.what != Remedy::What::kNone) push_back(std::move(one));
  }
};

// "tombstone", "void", "quarantine", "rewrite"; "" for kNone.
const char* RemedyName(Remedy::What what);

}  // namespace holdfast
