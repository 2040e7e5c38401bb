// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/faults.h"

namespace holdfast::sim {

const char* FaultName(Fault fault) {
  switch (fault) {
    case Fault::kPowerLoss: return "power_loss";
    case Fault::kRoomPowerLoss: return "power_loss_of_the_room";
    case Fault::kDaemonAndChildrenKilled: return "daemon_and_children_killed";
    case Fault::kDaemonKilled: return "daemon_killed";
    case Fault::kTaskKilled: return "worker_killed";
    case Fault::kDiesAtCall: return "dies_at_a_call";
    case Fault::kPausesAtCall: return "pauses_at_a_call";
    case Fault::kMachinePaused: return "machine_paused";
    case Fault::kTaskPaused: return "worker_paused";
    case Fault::kSleeperSucceeded: return "worker_sleeps_through_takeover";
    case Fault::kClone: return "clone";
    case Fault::kDrain: return "drain";
    case Fault::kDeviceBroken: return "computed_on_a_broken_device";
    case Fault::kRecomputedOtherwise: return "recomputed_with_other_bits";
    case Fault::kPoisonSample: return "sample_ends_worker";
    case Fault::kSampleNotFinite: return "sample_not_finite";
    case Fault::kWallClockForward: return "wall_clock_a_day_on";
    case Fault::kWallClockBack: return "wall_clock_a_day_back";
    case Fault::kServerCrash: return "server_crash";
    case Fault::kServerForgetsData: return "server_forgets_data";
    case Fault::kServerForgetsName: return "async_server_forgets_name";
    case Fault::kReplay: return "client_sends_again";
    case Fault::kFullAtCreate: return "enospc_at_create";
    case Fault::kFullAtWrite: return "enospc_at_write";
    case Fault::kFullAtFsync: return "enospc_at_fsync";
    case Fault::kFullAtClose: return "enospc_at_close";
    case Fault::kReadOnly: return "erofs";
    case Fault::kCutOff: return "cut_off_from_server";
    case Fault::kEio: return "eio";
    case Fault::kEstaleAtOpen: return "estale_at_open";
    case Fault::kEstaleAtRead: return "estale_at_read";
    case Fault::kLinkReplyLost: return "link_retransmitted";
    case Fault::kLinkGivenUp: return "link_done_but_eio";
    case Fault::kLateLinkLands: return "late_link_lands";
    case Fault::kLateLinkTaken: return "late_link_finds_slot_taken";
    case Fault::kLateLinkOfTheDead: return "link_of_a_dead_sender";
    case Fault::kStaleListing: return "stale_listing";
    case Fault::kTornListing: return "torn_listing";
    case Fault::kNegativeDentry: return "negative_dentry_hides";
    case Fault::kCachedAttributes: return "attributes_from_cache";
    case Fault::kMessageLost: return "message_lost";
    case Fault::kMessageTwice: return "message_twice";
    case Fault::kMessageOvertaken: return "message_overtaken";
    case Fault::kMute: return "node_mute";
    case Fault::kDeaf: return "node_deaf";
    case Fault::kCoordinatorMute: return "coordinator_mute";
    case Fault::kCoordinatorDeaf: return "coordinator_deaf";
    case Fault::kCoordinatorCutOff: return "coordinator_without_storage";
    case Fault::kFenced: return "fenced";
    case Fault::kForked: return "forked";
    case Fault::kWaitedForSpace: return "waited_for_space";
    case Fault::kDaemonRestarted: return "daemon_restarted";
    case Fault::kCount_: break;
  }
  return "?";
}

}  // namespace holdfast::sim
