// SPDX-License-Identifier: Apache-2.0
//
// JSON for everything that is read from disk or printed. The only file that includes nlohmann_json.
// ParseJson never throws and refuses what the library would let pass: duplicate keys, deep nesting, trailing bytes.
#pragma once

#include <nlohmann/json.hpp>  // IWYU pragma: export
#include <string>
#include <string_view>
#include <vector>

#include "ledger/base/result.h"

namespace holdfast {

using Json = nlohmann::json;                 // keys sorted: canonical form for records
using OrderedJson = nlohmann::ordered_json;  // keys in file order: for files of others that we write back

// Parses one JSON document. Errors (kInvalidArgument) name `what`, the byte offset and the reason:
// syntax, a duplicate key, nesting over 64, more than `max_bytes`, invalid UTF-8, bytes after the document.
Result<Json> ParseJson(std::string_view text, const std::string& what, size_t max_bytes = 256u << 20);
Result<OrderedJson> ParseOrderedJson(std::string_view text, const std::string& what, size_t max_bytes = 256u << 20);

// Canonical bytes of a record: sorted keys, no white space. Precondition: no floats inside (CHECKed).
std::string CanonicalJson(const Json& value);

// Typed access that answers with an error naming `what` and the field instead of throwing.
Result<std::string> GetString(const Json& obj, const char* key, const std::string& what);
Result<int64_t> GetInt(const Json& obj, const char* key, const std::string& what);
Result<uint64_t> GetUint(const Json& obj, const char* key, const std::string& what);
Result<bool> GetBool(const Json& obj, const char* key, const std::string& what);
Result<double> GetNumber(const Json& obj, const char* key, const std::string& what);
// The member, which must be an object (GetObject) or an array (GetArray). The pointer lives as long as `obj`.
Result<const Json*> GetObject(const Json& obj, const char* key, const std::string& what);
Result<const Json*> GetArray(const Json& obj, const char* key, const std::string& what);

}  // namespace holdfast
