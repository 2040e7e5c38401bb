// SPDX-License-Identifier: Apache-2.0
//
// Fail-points, compiled in always: places where a test may end, pause or fail this process.
//   HOLDFAST_FAIL=<point>[:<n>][=kill|pause|enospc|eio]      default: the first hit, kill
// e.g. HOLDFAST_FAIL=publish.P4@stage.01:7=kill ends the process at the 7th arrival at P4 on stream stage.01.
// HOLDFAST_FAIL holds for a worker's first life only: its supervisor does not pass it on to the next. HOLDFAST_FAIL_ALWAYS is for every life.
// A point without "@stream" in the variable matches every stream. Several, separated by ';'.
#pragma once

#include <string_view>

#include "ledger/base/result.h"

namespace holdfast {

// Announces arrival at `point` ("publish.P4"), working on `subject` (stream or pack name). Usually returns OK at once.
// kill: SIGKILL to itself. pause: SIGSTOP to itself. enospc / eio: returns that error to the caller.
Status FailPoint(std::string_view point, std::string_view subject = {});

}  // namespace holdfast
