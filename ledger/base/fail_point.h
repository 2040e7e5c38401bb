// SPDX-License-Identifier: Apache-2.0
//
// Fail-points, compiled in always: places where a test may end, pause or fail this process.
//   HOLDFAST_FAIL=<point>[@<subject>][:<n>][=kill|pause|oom|fault|enospc|edquot|eio|estale]      default: every subject, the first hit, kill
// e.g. HOLDFAST_FAIL=publish.P4@stage.01:7=kill ends the process at the 7th arrival at P4 on stream stage.01.
// Several, separated by ';'. HOLDFAST_FAIL holds for a worker's first life; what stands behind a ',' for its second, and so on:
// "publish.P3@stage.00:4,publish.P5@stage.00:2" kills two lives of one worker. HOLDFAST_FAIL_ALWAYS is for every life.
// HOLDFAST_FAIL_TRACE=FILE: each arrival appends the line "<ns since boot> <pid> <point>@<subject>", and one more with " = <action>" behind it
// where something is done: a test learns where a program passes, and whether its fault was reached.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "ledger/base/result.h"

namespace holdfast {

// Announces arrival at `point` ("publish.P4"), working on `subject` (stream or pack name). Usually returns OK at once.
// kill: SIGKILL to itself. pause: SIGSTOP to itself. oom, fault: returns what a device without memory, or a broken one, ends in. An errno: returns
// that error to the caller.
Status FailPoint(std::string_view point, std::string_view subject = {});

// The value of HOLDFAST_FAIL for a child that had `lives` already; "" = none.
std::string FailPointsAfter(size_t lives);

}  // namespace holdfast
