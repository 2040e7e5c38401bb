// SPDX-License-Identifier: Apache-2.0
//
// Whether somebody works on a job or a root. Processes of this machine are looked up; of those elsewhere the tails of the streams, and in
// a root their beats, are watched.
#pragma once

#include "fsck/repair.h"

namespace holdfast::fsck {

// OK: nobody does. kInvalidArgument: who does, where, and what to type first. kStopped: options.stop.
Status RefuseWhileAlive(FileSystem& fs, Clock& clock, const RepairPlan& plan, const RepairOptions& options);

}  // namespace holdfast::fsck
