// SPDX-License-Identifier: Apache-2.0
#include "ledger/base/result.h"

#include <cerrno>
#include <cstring>

namespace holdfast {

const char* ErrorCodeName(ErrorCode code) {
  switch (code) {
    case ErrorCode::kOk: return "ok";
    case ErrorCode::kTransient: return "transient";
    case ErrorCode::kFenced: return "fenced";
    case ErrorCode::kCorrupt: return "corrupt";
    case ErrorCode::kNotFound: return "not_found";
    case ErrorCode::kAlreadyExists: return "already_exists";
    case ErrorCode::kInvalidArgument: return "invalid_argument";
    case ErrorCode::kResourceExhausted: return "resource_exhausted";
    case ErrorCode::kUnsupported: return "unsupported";
    case ErrorCode::kStopped: return "stopped";
    case ErrorCode::kInternal: return "internal";
  }
  return "unknown";
}

Error ErrnoError(int err, const std::string& doing) {
  ErrorCode code = ErrorCode::kInternal;
  switch (err) {
    case ENOENT: code = ErrorCode::kNotFound; break;
    case EEXIST:
    case ENOTEMPTY: code = ErrorCode::kAlreadyExists; break;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM: code = ErrorCode::kResourceExhausted; break;
    case EINTR:
    case EAGAIN:
    case ESTALE: code = ErrorCode::kTransient; break;
    default: break;
  }
  return {code, doing + ": " + std::strerror(err)};
}

void CheckFailed(const char* expr, const char* file, int line) {
  std::fprintf(stderr, "holdfast: internal check failed: %s at %s:%d\n", expr, file, line);
  std::abort();
}

}  // namespace holdfast
