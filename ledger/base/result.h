// SPDX-License-Identifier: Apache-2.0
//
// Errors as values. Every fallible function in Holdfast returns Status or Result<T>; no exception of ours
// crosses a function boundary. Third-party libraries that throw are wrapped in the one file that includes them.
//
// A separate ErrorCode exists only where some caller reacts to it differently; everything else is the message.
// A message says what happened, to what (file, field, number) and, where there is one, the next command to type.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

namespace holdfast {

enum class ErrorCode : uint8_t {
  kOk = 0,
  kTransient,          // retry with backoff
  kFenced,             // a newer claim owns the stream: drop the work, destroy nothing, exit 75
  kCorrupt,            // bytes are not what their digest says: quarantine, redo the unit
  kNotFound,           //
  kAlreadyExists,      // the name is taken (link(2) EEXIST): somebody else won
  kInvalidArgument,    // bad input: tell the user, exit 2
  kResourceExhausted,  // ENOSPC, out of memory: shrink or wait
  kUnsupported,        // a newer format, an unknown architecture: refuse, exit 2
  kStopped,            // asked to stop (signal, drain): exit 75
  kInternal,           // everything else
};

// Short stable name of a code ("corrupt"), for logs and --json.
const char* ErrorCodeName(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                      // NOLINT: implicit on purpose
  Result(Error error) : error_(std::move(error)) {}                  // NOLINT
  template <class U = T, class = std::enable_if_t<std::is_convertible_v<U&&, T> && !std::is_same_v<std::decay_t<U>, T> &&
                                                  !std::is_same_v<std::decay_t<U>, Error> &&
                                                  !std::is_same_v<std::decay_t<U>, Result<T>>>>
  Result(U&& value) : value_(std::forward<U>(value)) {}              // NOLINT

  bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }

  // Precondition of value()/operator*: ok(). Precondition of error(): !ok().
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  const Error& error() const { return error_; }
  ErrorCode code() const { return ok() ? ErrorCode::kOk : error_.code; }

 private:
  std::optional<T> value_;
  Error error_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}      // NOLINT
  bool ok() const { return ok_; }
  explicit operator bool() const { return ok_; }
  const Error& error() const { return error_; }
  ErrorCode code() const { return ok_ ? ErrorCode::kOk : error_.code; }

 private:
  Error error_;
  bool ok_ = true;
};

using Status = Result<void>;

inline Status OkStatus() { return {}; }
inline Error MakeError(ErrorCode code, std::string message) { return Error{code, std::move(message)}; }
inline Error Corrupt(std::string m) { return {ErrorCode::kCorrupt, std::move(m)}; }
inline Error InvalidArgument(std::string m) { return {ErrorCode::kInvalidArgument, std::move(m)}; }
inline Error NotFound(std::string m) { return {ErrorCode::kNotFound, std::move(m)}; }
inline Error Unsupported(std::string m) { return {ErrorCode::kUnsupported, std::move(m)}; }
inline Error Exhausted(std::string m) { return {ErrorCode::kResourceExhausted, std::move(m)}; }
inline Error Fenced(std::string m) { return {ErrorCode::kFenced, std::move(m)}; }
inline Error Stopped(std::string m) { return {ErrorCode::kStopped, std::move(m)}; }
inline Error Internal(std::string m) { return {ErrorCode::kInternal, std::move(m)}; }

// The same error with `context: ` put before its message.
inline Error Annotate(const Error& e, const std::string& context) { return {e.code, context + ": " + e.message}; }

// The error that errno (or `err`) names, as "doing WHAT: strerror". ENOENT -> kNotFound, EEXIST -> kAlreadyExists,
// ENOSPC/EDQUOT/ENOMEM -> kResourceExhausted, EINTR/EAGAIN/ESTALE -> kTransient, the rest kInternal.
Error ErrnoError(int err, const std::string& doing);

[[noreturn]] void CheckFailed(const char* expr, const char* file, int line);

}  // namespace holdfast

// A bug, never an error: stays on in release builds and ends the process. Not for bytes from disk or network.
#define HOLDFAST_CHECK(cond) \
  do {                       \
    if (!(cond)) ::holdfast::CheckFailed(#cond, __FILE__, __LINE__); \
  } while (0)

#define HOLDFAST_CONCAT_(a, b) a##b
#define HOLDFAST_CONCAT(a, b) HOLDFAST_CONCAT_(a, b)

// Returns the error of `expr` (a Status or a Result whose value is not needed) from the enclosing function.
#define HOLDFAST_TRY(expr)                          \
  do {                                              \
    auto holdfast_status_ = (expr);                 \
    if (!holdfast_status_.ok()) return holdfast_status_.error(); \
  } while (0)

// HOLDFAST_ASSIGN(auto x, MaybeX()); declares x or returns the error.
#define HOLDFAST_ASSIGN(decl, expr) HOLDFAST_ASSIGN_(decl, expr, HOLDFAST_CONCAT(holdfast_result_, __LINE__))
#define HOLDFAST_ASSIGN_(decl, expr, tmp) \
  auto tmp = (expr);                      \
  if (!tmp.ok()) return tmp.error();      \
  decl = std::move(tmp).value()
