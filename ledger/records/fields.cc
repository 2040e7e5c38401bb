// SPDX-License-Identifier: Apache-2.0
#include "ledger/records/fields.h"

namespace holdfast {

Fields::Fields(const Json& object, std::string what) : object_(object), what_(std::move(what)) {
  if (!object.is_object()) Fail("not an object");
}

Fields& Fields::Fail(const std::string& why) {
  if (status_.ok()) status_ = Corrupt(what_ + ": " + why);
  return *this;
}

Fields& Fields::Wrong(const char* key, const char* want) { return Fail(std::string("field \"") + key + "\" is not " + want); }

const Json* Fields::Member(const char* key) {
  if (!status_.ok()) return nullptr;
  const auto it = object_.find(key);
  if (it != object_.end()) return &*it;
  Fail(std::string("field \"") + key + "\" is missing");
  return nullptr;
}

void Fields::Value(const Json& v, const char* key, std::string* out) {
  if (v.is_string()) {
    *out = v.get<std::string>();
  } else {
    Wrong(key, "a string");
  }
}

void Fields::Value(const Json& v, const char* key, bool* out) {
  if (v.is_boolean()) {
    *out = v.get<bool>();
  } else {
    Wrong(key, "true or false");
  }
}

void Fields::Value(const Json& v, const char* key, Digest* out) {
  if (!v.is_string() || !Digest::FromHex(v.get_ref<const std::string&>(), out)) Wrong(key, "64 hex digits");
}

void Fields::Value(const Json& v, const char* key, Nonce* out) {
  if (!v.is_string() || !Nonce::FromHex(v.get_ref<const std::string&>(), out)) Wrong(key, "32 hex digits");
}

void Fields::Value(const Json& v, const char* key, DType* out) {
  const auto type = v.is_string() ? DTypeFromName(v.get_ref<const std::string&>()) : std::nullopt;
  if (type) {
    *out = *type;
  } else {
    Wrong(key, "the name of an element type");
  }
}

uint64_t Fields::Uint(const Json& v, const char* key) {
  if (v.is_number_unsigned()) return v.get<uint64_t>();
  if (v.is_number_integer() && v.get<int64_t>() >= 0) return static_cast<uint64_t>(v.get<int64_t>());
  Wrong(key, "a non-negative integer");
  return 0;
}

}  // namespace holdfast
