#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Two nodes on two hosts over a real kernel NFS server, and what may happen to them, one scenario a time. By hand or nightly: the hosts are
# emulated, a scenario takes three to ten minutes.
#
#   tests/nfs/nfs_test.sh RIG BIN SCENARIO [VERSION]   VERSION of NFS: 3 or 4.2 (default)
#   tests/nfs/nfs_test.sh RIG BIN all [VERSION...]     every scenario in turn (default: over 4.2 and 3), then a table
#
#   RIG  a script that boots the hosts srv, c1, c2 and knows the commands up, down, status, mount HOST VERSION OPTIONS, exec HOST CMD, spawn HOST CMD,
#        srv-crash SECONDS, cut HOST, heal HOST, kill HOST, start HOST, pause HOST, resume HOST, freeze HOST, thaw HOST
#   BIN  folder of the programs; the hosts see it below /host
#   NFSRIG_DIR  folder of the rig; NFSRIG_DIR/share is the same path here and in the hosts.  KEEP_RIG=1 leaves the hosts up.
#
# Scenarios, with the rows of docs/failure-matrix.md:
#   crash 11      the server loses power under load, twice        stall 13     one node loses the server, and nothing else
#   hung 13       the same, and it is the one that coordinates
#   cut 24        a node's cable is out for two T_suspect         away 13      the server is away for five T_suspect
#   power 9       a node loses power and comes back               lost 10      a node loses power for ever
#   pause 21 22   a virtual machine stands still over a takeover; its clock, too
#   freeze 21 22  the same, and its clock jumps when it wakes
#   twins 27      two hosts of one hostname, two daemons of one --name        hostnames 27  two hosts of one hostname, two names
#   async 12      the export is async, and the server loses power
#   allnodes 31   all nodes lose power at once                    enospc 15    a small export is full
# Each ends in the SHA256SUMS of an undisturbed run, a clean `jobctl fsck ROOT --deep`, and no process ended by SIGABRT or SIGSEGV.
set -euo pipefail
BIN=$(readlink -f "${2:?folder of the programs}")
readonly RIG=${1:?the script that runs the hosts} BIN SCENARIO=${3:?scenario, or all}
readonly SCENARIOS="crash stall hung away cut pause freeze power allnodes lost async enospc hostnames twins"

run_all() {
  local version scenario began outcome table="" failed=0 log
  for version in "$@"; do
    for scenario in $SCENARIOS; do
      began=$SECONDS log=$(mktemp)
      KEEP_RIG=1 "$0" "$RIG" "$BIN" "$scenario" "$version" 2>&1 | tee "$log" && outcome=passed || { outcome=FAILED && failed=1; }
      table+=$(printf '%-10s v%-4s %-7s %4d s  %s' "$scenario" "$version" "$outcome" $((SECONDS - began)) "$(sed -n 's/.*; \([0-9]* kills\)$/\1/p' "$log")")$'\n'
      rm "$log"
    done
  done
  "$RIG" down
  printf '\n%s' "$table"
  return $failed
}
if [[ $SCENARIO == all ]]; then
  shift 3
  [[ $# -gt 0 ]] || set -- 4.2 3
  run_all "$@"
  exit
fi
[[ " $SCENARIOS " == *" $SCENARIO "* ]] || { echo "unknown scenario $SCENARIO; one of: all $SCENARIOS" >&2 && exit 2; }
readonly VERSION=${4:-4.2}
# shellcheck source=tests/nfs/nfs_harness.sh
source "$(dirname "${BASH_SOURCE[0]}")/nfs_harness.sh"

at_work() { # CELLS [OPTIONS OF SUBMIT]
  submit "${@:2}"
  wait_until 300 "the first samples" has_cells "$1"
}
two_nodes_at_work() { # CELLS
  begin c1:c1:c1 c2:c2:c2
  at_work "$1" --on c1,c2
}
fenced() { # HOST STAGE: it says that the stage is not its any more
  local words="stage $2 .*(: fenced: | is not this node's any more)"
  wait_until 300 "$1 to say that it was fenced" has_said "$1" "$words"
  said "$1" | grep -E "$words"
}

crash() {
  two_nodes_at_work 8
  hurt "the server loses power, for 10 s"
  "$RIG" srv-crash 10
  hurt "it is back, and loses power again"
  "$RIG" srv-crash 3
  check_bytes
}

stalled() { [[ $(field "[x['storage_stalled_ms'] for x in n if x['node'] == '$1'][0]") -gt 0 ]]; }
loses_the_server() { # HOST OTHER STAGE-OF-HOST
  asked=$2
  two_nodes_at_work 8
  hurt "what $1 sends to the server goes nowhere; $2 hears it"
  on "$1" "ip neigh replace 10.99.0.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent"
  wait_until 120 "storage_stalled" stalled "$1"
  jobctl nodes | grep "has not answered"
  wait_until 300 "the takeover of stage $3" is_taken_over "$3"
  on "$1" "ip neigh del 10.99.0.1 dev eth0"
  say "$2 has stage $3; $1 reaches the server again"
  fenced "$1" "$3"
  check_bytes
}
stall() { loses_the_server c2 c1 1; }
hung() { loses_the_server c1 c2 0; }

away() {
  two_nodes_at_work 8
  hurt "the server is away for $((5 * SUSPECT)) s"
  "$RIG" cut srv
  sleep $((5 * SUSPECT))
  "$RIG" heal srv
  say "the server is back"
  check_bytes
  say "assignments: $(field "[m['why'] for m in j['moves']]")"
}

cut() {
  two_nodes_at_work 8
  hurt "the cable of c2 is out, for $((3 * SUSPECT)) s"
  "$RIG" cut c2
  sleep $((3 * SUSPECT))
  "$RIG" heal c2
  say "c2 is back"
  check_bytes
}

sleeper() { # COMMAND TO-SLEEP TO-WAKE
  two_nodes_at_work 8
  hurt "c2 stands still ($1)"
  "$RIG" "$1" c2
  wait_until 300 "the takeover of stage 1" is_taken_over 1
  say "c1 has stage 1; c2 wakes ($2)"
  "$RIG" "$2" c2
  fenced c2 1
  check_bytes
}
pause() { sleeper pause resume; }
freeze() { sleeper freeze thaw; }

power() {
  two_nodes_at_work 8
  hurt "c2 loses power"
  "$RIG" kill c2
  sleep 5
  boot c2
  check_bytes
  wait_until 60 "c2 among the nodes" nodes_alive 2
}

allnodes() {
  two_nodes_at_work 30
  hurt "all nodes lose power"
  "$RIG" kill c1
  "$RIG" kill c2
  kills=$((kills + 1))
  boot c1
  boot c2
  check_bytes
}

lost() {
  two_nodes_at_work 8
  hurt "c2 loses power, for ever"
  "$RIG" kill c2
  check_bytes
  [[ $(holders) == "c1, c1" ]] || fail "stages on $(holders)"
}

twins() {
  fresh_root /mnt/nfs/twins-root
  begin c1:twin:twin
  stop_node c2 KILL
  host_ready c2 twin
  start_node c2 twin
  wait_until 300 "the end of the second" has_ended c2
  [[ $(status_of c2) -eq 2 ]] || fail "the second of one name ended with $(status_of c2), not with 2: $(said c2)"
  said c2 | grep -e --takeover
  at_work 0
  say "the twin takes over"
  asked=c2 kills=1
  start_node c2 twin --takeover
  wait_until 300 "the end of the first" has_ended c1
  [[ $(status_of c1) -eq 75 ]] || fail "the first ended with $(status_of c1), not with 75: $(said c1)"
  said c1 | grep "taken over"
  check_bytes
}

hostnames() {
  fresh_root /mnt/nfs/hostnames-root
  begin c1:clone:c1 c2:clone:c2
  at_work 8 --on c1,c2
  check_bytes
  say "claims of the job by coordinators: $(everything_said c1 | grep -c 'this node coordinates') of c1, $(everything_said c2 | grep -c 'this node coordinates') of c2"
}

slots() { on srv "cd /export/${ROOT#/mnt/nfs/} && find . -name '*.seg' -size +0 | sort"; }
has_an_end() { [[ $(field "j['state']") =~ ^(done|failed)$ ]]; }
async() {
  fresh_root /mnt/nfs/async-root
  begin c1:c1:c1 c2:c2:c2
  on srv "exportfs -o rw,async,no_root_squash,no_subtree_check,fsid=0 '10.99.0.0/24:/export' && exportfs -f && exportfs -v && sync"
  at_work 8 --on c1,c2
  on srv sync
  wait_until 300 "some more samples" has_cells 30
  slots >"$(of slots before)"
  hurt "the server, exporting async, loses power for 10 s"
  "$RIG" srv-crash 10
  slots >"$(of slots after)"
  say "of $(wc -l <"$(of slots before)") slots $(comm -23 "$(of slots before)" "$(of slots after)" | wc -l) are gone or empty"
  wait_until 300 "an end of the job, good or bad" has_an_end
  say "$(field "j['state'] + ': ' + j['detail']")"
  for host in c1 c2; do stop_node $host; done
  for host in c1 c2; do wait_until 100 "the end of $host" has_ended $host; done
  for host in c1 c2; do said $host | grep LEDGER_REGRESSION | sed 's/^/    /' || true; done
  on c1 "/host$BIN/jobctl fsck $ROOT --deep" || say "fsck ends with $?"
  on c1 "/host$BIN/jobctl fsck $ROOT --deep --repair" || say "fsck --repair ends with $?"
  start_node c1 c1
  start_node c2 c2
  wait_until 300 "two nodes" nodes_alive 2
  [[ $(field "j['state']") == 'done' ]] || jobctl "resume $(name)"
  check_bytes
}

enospc() {
  fresh_root /mnt/small/root
  for host in c1 c2; do stop_node $host KILL && host_ready $host $host; done
  on srv "modprobe loop; umount /export/small 2>/dev/null; mkdir -p /export/small && truncate -s 32M /srv/disk/small.img && mkfs.ext4 -q -F /srv/disk/small.img &&
    mount -o loop /srv/disk/small.img /export/small && exportfs -o rw,sync,no_root_squash,no_subtree_check,fsid=7 '10.99.0.0/24:/export/small'"
  for host in c1 c2; do
    on $host "mkdir -p /mnt/small && mount.nfs srv:$([[ $VERSION == 3 ]] && echo /export)/small /mnt/small -o vers=$VERSION,hard,$OPTIONS"
  done
  begin c1:c1:c1 c2:c2:c2
  at_work 8 --on c1,c2
  hurt "somebody fills the export"
  on srv "dd if=/dev/zero of=/export/small/filler bs=4k 2>/dev/null; df /export/small | tail -n 1"
  out_of_space() { has_said c1 "make room" || has_said c2 "make room"; }
  wait_until 300 "a node out of space" out_of_space
  for host in c1 c2; do said $host | grep -m 2 "make room" || true; done
  on srv "rm /export/small/filler"
  say "there is room again"
  check_bytes
  for host in c1 c2; do stop_node $host KILL && rm -f "$(of $host what)" && on $host "sleep 1; umount -l /mnt/small"; done
  on srv "exportfs -u 10.99.0.0/24:/export/small; umount -l /export/small"
}

"$RIG" up
trap finish EXIT
"$SCENARIO"
