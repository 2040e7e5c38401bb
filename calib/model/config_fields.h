// SPDX-License-Identifier: Apache-2.0
//
// What decoder.cc and rope_config.cc read config.json with: its fields, and bounds for every number before anybody multiplies it.
#pragma once

#include <string>

#include "calib/model/architectures.h"
#include "ledger/base/json.h"

namespace holdfast {

inline constexpr uint64_t kLayersMax = 2048;
inline constexpr uint64_t kHiddenMax = 1u << 17;
inline constexpr uint64_t kIntermediateMax = 1u << 20;
inline constexpr uint64_t kVocabMax = 1u << 24;
inline constexpr uint64_t kHeadsMax = 4096;
inline constexpr uint64_t kHeadDimMax = 1024;
inline constexpr uint64_t kPositionsMax = 1ull << 31;

// The fields of one JSON object: absent and null are the same unless a caller asks.
class ConfigFields {
 public:
  ConfigFields(const Json& object, std::string what) : object_(object), what_(std::move(what)) {}

  const std::string& what() const { return what_; }
  bool Has(const char* key) const { return object_.contains(key); }
  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  Result<uint64_t> Count(const char* key, uint64_t max) const {   // required, 1..max
    if (Find(key) == nullptr) return InvalidArgument(what_ + ": field \"" + key + "\" is missing");
    return Count(key, max, 0);
  }
  Result<uint64_t> Count(const char* key, uint64_t max, uint64_t fallback) const {
    if (Find(key) == nullptr) return fallback;
    HOLDFAST_ASSIGN(const uint64_t value, GetUint(object_, key, what_));
    if (value < 1 || value > max) {
      return InvalidArgument(what_ + ": field \"" + key + "\" is " + std::to_string(value) + ", expected 1 to " + std::to_string(max));
    }
    return value;
  }
  Result<uint64_t> CountOrZero(const char* key, uint64_t max, uint64_t fallback) const {
    const Json* value = Find(key);
    return value != nullptr && *value == 0 ? Result<uint64_t>(0) : Count(key, max, fallback);
  }
  Result<double> Number(const char* key, double fallback, double above, double max) const {   // above < value <= max
    if (Find(key) == nullptr) return fallback;
    HOLDFAST_ASSIGN(const double value, GetNumber(object_, key, what_));
    if (!(value > above && value <= max)) {
      return InvalidArgument(what_ + ": field \"" + key + "\" is " + object_.at(key).dump() + ", expected a number above " +
                             Json(above).dump() + " and at most " + Json(max).dump());
    }
    return value;
  }
  Result<bool> Flag(const char* key, bool fallback) const {
    if (Find(key) == nullptr) return fallback;
    return GetBool(object_, key, what_);
  }
  Result<std::string> Text(const char* key, const std::string& fallback) const {
    if (Find(key) == nullptr) return fallback;
    return GetString(object_, key, what_);
  }

 private:
  const Json& object_;
  std::string what_;
};

// Rotary embeddings, global and local, and which layer has which. rope_config.cc.
Status ParseRope(const ConfigFields& f, const ArchitectureRow& row, DecoderSpec* spec);

}  // namespace holdfast
