// SPDX-License-Identifier: Apache-2.0
//
// CURVE keys in <root>/keys (0700): <name>.public and <name>.secret (0600), 40 characters of Z85 and a newline each. The directory is the
// trust anchor: a public key that lies there is allowed, everything else is denied.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "ledger/base/result.h"

namespace holdfast {

struct CurveKeys {
  std::string public_key, secret_key;    // Z85; both empty: plain sockets
};

// Makes the directory if need be, and the pair of `name` if there is none (existing keys are never replaced). Files are written private and
// complete before they get their names. kInvalidArgument: the directory is readable by others, with the chmod to type.
Status MakeKeys(const std::string& keys_dir, const std::string& name);
// nullopt: no keys directory at all (nobody ran keygen). Errors: unreadable, not Z85, secret readable by others.
Result<std::optional<CurveKeys>> ReadKeys(const std::string& keys_dir, const std::string& name);
Result<std::map<std::string, std::string>> AllowedKeys(const std::string& keys_dir);   // public key -> name

}  // namespace holdfast
