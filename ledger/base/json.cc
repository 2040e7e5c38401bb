// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/json.h"

#include <set>

namespace holdfast {
namespace {

constexpr size_t kDepthMax = 64;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";  // the library skips it; who spells a text anew would trip over it

// Walks the document once before the DOM is built, so that duplicate keys are an error and not "last one wins".
class Gate : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Push(); }
  bool key(string_t& k) override {
    if (keys_.back().insert(k).second) return true;
    return Fail("duplicate key \"" + k + "\"");
  }
  bool end_object() override { return Pop(); }
  bool start_array(std::size_t) override { return Push(); }
  bool end_array() override { return Pop(); }
  bool parse_error(std::size_t pos, const std::string&, const nlohmann::detail::exception& e) override {
    std::string why = e.what();
    if (const size_t at = why.find("syntax error"); at != std::string::npos) why = why.substr(at);
    return Fail("at byte " + std::to_string(pos) + ": " + why);
  }
  std::string why;

 private:
  bool Push() {
    if (keys_.size() >= kDepthMax) return Fail("nested deeper than " + std::to_string(kDepthMax));
    keys_.emplace_back();
    return true;
  }
  bool Pop() {
    keys_.pop_back();
    return true;
  }
  bool Fail(std::string w) {
    if (why.empty()) why = std::move(w);
    return false;
  }
  std::vector<std::set<std::string>> keys_;
};

template <class J>
Result<J> Parse(std::string_view text, const std::string& what, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return InvalidArgument(what + ": JSON of " + std::to_string(text.size()) + " bytes, more than the " +
                           std::to_string(max_bytes) + " allowed here");
  }
  if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) {
    return InvalidArgument(what + ": not valid JSON: begins with a byte order mark; save the file as UTF-8 without one");
  }
  Gate gate;
  if (!Json::sax_parse(text.begin(), text.end(), &gate) || !gate.why.empty()) {
    return InvalidArgument(what + ": not valid JSON: " + (gate.why.empty() ? "unreadable" : gate.why));
  }
  J value = J::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return InvalidArgument(what + ": not valid JSON");
  return value;
}

bool HasFloat(const Json& v) {
  if (v.is_number_float()) return true;
  if (v.is_structured()) {
    for (const auto& x : v) {
      if (HasFloat(x)) return true;
    }
  }
  return false;
}

Result<const Json*> Field(const Json& obj, const char* key, const std::string& what) {
  if (!obj.is_object()) return InvalidArgument(what + ": expected an object");
  const auto it = obj.find(key);
  if (it == obj.end()) return InvalidArgument(what + ": field \"" + key + "\" is missing");
  return &*it;
}

Error Wrong(const char* key, const std::string& what, const char* want) {
  return InvalidArgument(what + ": field \"" + key + "\" is not " + want);
}

}  // namespace

Result<Json> ParseJson(std::string_view text, const std::string& what, size_t max_bytes) {
  return Parse<Json>(text, what, max_bytes);
}
Result<OrderedJson> ParseOrderedJson(std::string_view text, const std::string& what, size_t max_bytes) {
  return Parse<OrderedJson>(text, what, max_bytes);
}

std::string CanonicalJson(const Json& value) {
  HOLDFAST_CHECK(!HasFloat(value));
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<std::string> GetString(const Json& obj, const char* key, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* v, Field(obj, key, what));
  if (!v->is_string()) return Wrong(key, what, "a string");
  return v->get<std::string>();
}
Result<int64_t> GetInt(const Json& obj, const char* key, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* v, Field(obj, key, what));
  if (!v->is_number_integer()) return Wrong(key, what, "an integer");
  if (v->is_number_unsigned() && v->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return Wrong(key, what, "in range");
  return v->get<int64_t>();
}
Result<uint64_t> GetUint(const Json& obj, const char* key, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* v, Field(obj, key, what));
  if (v->is_number_unsigned()) return v->get<uint64_t>();
  if (v->is_number_integer() && v->get<int64_t>() >= 0) return static_cast<uint64_t>(v->get<int64_t>());
  return Wrong(key, what, "a non-negative integer");
}
Result<bool> GetBool(const Json& obj, const char* key, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* v, Field(obj, key, what));
  if (!v->is_boolean()) return Wrong(key, what, "true or false");
  return v->get<bool>();
}
Result<double> GetNumber(const Json& obj, const char* key, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* v, Field(obj, key, what));
  if (!v->is_number()) return Wrong(key, what, "a number");
  return v->get<double>();
}
Result<const Json*> GetObject(const Json& obj, const char* key, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* v, Field(obj, key, what));
  if (!v->is_object()) return Wrong(key, what, "an object");
  return v;
}
Result<const Json*> GetArray(const Json& obj, const char* key, const std::string& what) {
  HOLDFAST_ASSIGN(const Json* v, Field(obj, key, what));
  if (!v->is_array()) return Wrong(key, what, "an array");
  return v;
}

}  // namespace holdfast
