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
// complete before they get their names; twins and a death half-way leave one true pair. kInvalidArgument: a name that is none, the directory
// or the secret is readable by others (with the chmod to type), a public key lies there without its secret.
Status MakeKeys(const std::string& keys_dir, const std::string& name);
// nullopt: no keys directory at all (nobody ran keygen). kNotFound: there is one, without a pair of `name`. Other errors: unreadable, not
// Z85, two files that are no pair, directory or secret readable by others.
Result<std::optional<CurveKeys>> ReadKeys(const std::string& keys_dir, const std::string& name);
// Public key -> name. A file that holds no key allows nobody and hides nobody else. kNotFound: no such directory.
Result<std::map<std::string, std::string>> AllowedKeys(const std::string& keys_dir);

}  // namespace holdfast
