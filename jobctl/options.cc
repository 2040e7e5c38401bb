// SPDX-License-Identifier: Apache-2.0
#include "jobctl/options.h"

#include <cstdio>

#include "ledger/base/json.h"
#include "ledger/base/printable.h"

namespace holdfast {

int ExitStatusOf(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
    case ErrorCode::kAlreadyExists:
    case ErrorCode::kNotFound: return kExitUsage;
    case ErrorCode::kStopped:
    case ErrorCode::kFenced:
    case ErrorCode::kTransient:
    case ErrorCode::kResourceExhausted: return kExitResumable;
    default: return kExitFailure;
  }
}

int Fail(const Error& error, bool json) {
  const int code = ExitStatusOf(error.code);
  if (json) {
    const Json line{{"event", "error"}, {"code", ErrorCodeName(error.code)}, {"message", error.message}, {"exit", code}};
    std::printf("%s\n", line.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    std::fflush(stdout);
  } else {
    std::fprintf(stderr, "jobctl: %s\n", Printable(error.message, LineBreaks::kKeep).c_str());
  }
  return code;
}

}  // namespace holdfast
