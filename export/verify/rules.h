// SPDX-License-Identifier: Apache-2.0
//
// The register of verify's rules: one stable code, one severity, one sentence. docs/verify.md says why each exists;
// a test holds the two together. Codes are never reused for something else.
#pragma once

#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "export/verify/verify.h"

namespace holdfast {

struct VerifyRule {
  const char* code;
  Severity severity;
  const char* rule;  // what holds in a sound directory
};

std::span<const VerifyRule> VerifyRules();
const VerifyRule* FindVerifyRule(const std::string& code);

// Collects findings from several threads. The severity comes from the register, so a code means one thing everywhere.
class FindingSink {
 public:
  void Add(const char* code, std::string object, std::string message);
  bool Has(const char* code) const;
  // Sorted by code, object and message; at most kFindingsPerCode of one code, then one line that counts the rest.
  std::vector<VerifyFinding> Take();

  static constexpr size_t kFindingsPerCode = 50;

 private:
  mutable std::mutex mutex_;
  std::vector<VerifyFinding> findings_;  // guarded by mutex_
};

}  // namespace holdfast
