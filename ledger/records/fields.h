// SPDX-License-Identifier: Apache-2.0
//
// Reads the fields of a control record. Remembers the first thing that is wrong (kCorrupt, naming record and field) and goes on
// with defaults, so that a decoder is a list of fields. Fields that nobody asks for are ignored: newer writers may add some.
#pragma once

#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "ledger/base/checksum.h"
#include "ledger/base/ids.h"
#include "ledger/base/json.h"
#include "ledger/records/dtype.h"

namespace holdfast {

class Fields {
 public:
  Fields(const Json& object, std::string what);

  template <class T>
  Fields& Get(const char* key, T* out) {
    if (const Json* v = Member(key)) Value(*v, key, out);
    return *this;
  }
  // An array, each element read by `read(element, T*)` -> Status, or a plain value if there is no `read`.
  template <class T, class Read>
  Fields& Array(const char* key, std::vector<T>* out, Read read) {
    const Json* v = Member(key);
    if (v == nullptr) return *this;
    if (!v->is_array()) return Wrong(key, "an array");
    out->clear();
    out->reserve(v->size());
    for (const Json& element : *v) {
      T item{};
      const Status s = read(element, &item);
      if (!s.ok()) return Fail(s.error().message);
      out->push_back(std::move(item));
    }
    return *this;
  }
  template <class T>
  Fields& Array(const char* key, std::vector<T>* out) {
    return Array(key, out, [&](const Json& v, T* item) -> Status {
      Value(v, key, item);
      return status_;
    });
  }
  // A member that older writers do not know: where it is missing, `out` keeps what it holds.
  template <class T>
  Fields& Optional(const char* key, T* out) {
    return Has(key) ? Get(key, out) : *this;
  }
  // Limits of untrusted input: a value of more bytes (elements) than `max` is refused.
  template <class T>
  Fields& AtMost(const char* key, const T& value, size_t max) {
    return value.size() <= max ? *this : Fail(std::string("field \"") + key + "\" is longer than " + std::to_string(max));
  }
  bool Has(const char* key) const { return object_.is_object() && object_.contains(key); }
  const Json* Member(const char* key);  // null after any error
  Fields& Fail(const std::string& why);
  const Status& status() const { return status_; }

  void Value(const Json& v, const char* key, std::string* out);
  void Value(const Json& v, const char* key, bool* out);
  void Value(const Json& v, const char* key, Digest* out);
  void Value(const Json& v, const char* key, Nonce* out);
  void Value(const Json& v, const char* key, DType* out);
  template <class T, class = std::enable_if_t<std::is_unsigned_v<T>>>
  void Value(const Json& v, const char* key, T* out) {
    const uint64_t x = Uint(v, key);
    if (x > std::numeric_limits<T>::max()) {
      Wrong(key, "in range");
    } else {
      *out = static_cast<T>(x);
    }
  }

 private:
  Fields& Wrong(const char* key, const char* want);
  uint64_t Uint(const Json& v, const char* key);
  const Json& object_;
  std::string what_;
  Status status_;
};

}  // namespace holdfast
