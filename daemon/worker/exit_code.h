// SPDX-License-Identifier: Apache-2.0
//
// What a child's outcome is as an exit code, for its supervisor.
#pragma once

#include "daemon/node/worker_args.h"
#include "ledger/base/result.h"

namespace holdfast {

inline int ExitCodeOf(const Status& status) {
  switch (status.code()) {
    case ErrorCode::kOk: return kExitDone;
    case ErrorCode::kStopped:
    case ErrorCode::kFenced: return kExitStopped;
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
    case ErrorCode::kAlreadyExists: return kExitRefused;
    case ErrorCode::kResourceExhausted: {
      // Memory makes the next life smaller; a full disk stops the run until somebody makes room.
      const std::string& said = status.error().message;
      const bool disk = said.find("No space left") != std::string::npos || said.find("quota") != std::string::npos;
      return disk ? kExitStopped : kExitOutOfMemory;
    }
    default: return kExitFailed;
  }
}

}  // namespace holdfast
