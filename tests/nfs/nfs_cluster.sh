#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Two nodes on two hosts over a real kernel NFS server (v4.2), the server killed and booted again in the middle, then a node cut off and a
# node without power. By hand or nightly; takes some minutes, as the hosts are emulated.
#
#   tests/nfs/nfs_cluster.sh RIG [BIN]     RIG: a script that boots the hosts srv, c1, c2 and knows the commands
#                                            up, down, mount HOST VERSION [OPTIONS], exec HOST CMD, spawn HOST CMD, wait STEM,
#                                            srv-crash SECONDS, cut HOST, heal HOST, kill HOST, start HOST
#                                          NFSRIG_DIR: its folder; NFSRIG_DIR/share is the same path here and in the hosts
#                                          BIN: folder of the programs, default build/bin; the hosts see it below /host
set -euo pipefail
readonly RIG=${1:?the script that runs the hosts} BIN=$(readlink -f "${2:-build/bin}")
readonly HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly SHARE=${NFSRIG_DIR:?folder of the rig}/share
readonly OPTIONS=lookupcache=positive,noatime,timeo=600,retrans=2
readonly ROOT=/mnt/nfs/root SUSPECT=${SUSPECT:-40}
export NFSRIG_DIR NFSRIG_TIMEOUT=900
declare -A address=([c1]=10.99.0.11 [c2]=10.99.0.12) jobs=()

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
on() { "$RIG" exec "$@"; }
jobctl() { on c1 "/host$BIN/jobctl --root $ROOT $*"; }
start_node() { jobs[$1]=$("$RIG" spawn "$1" "exec /host$BIN/holdfastd --root $ROOT --name $1 --listen ${address[$1]} --device cpu --threads 1 --memory 500MB --suspect $SUSPECT"); }
said() { sed "s/^/    $1: /" "${jobs[$1]}.out" "${jobs[$1]}.err"; }
field() { jobctl "status $1 --json" | python3 -c "import json, sys; j = json.load(sys.stdin)['jobs'][0]; print($2)"; }
samples_done() { field "$1" "sum(s['samples_done'] for s in j['stages'])"; }

wait_until() { # SECONDS WHAT CMD...: until the command succeeds
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [[ $SECONDS -lt $end ]] || { say "FAILED: $what never came" && exit 1; }
    sleep 1
  done
}
has_samples() { [[ $(samples_done "$1") -ge $2 ]]; }
is_done() {
  local state
  state=$(field "$1" "j['state']")
  [[ $state != failed ]] || { say "FAILED: $(field "$1" "j['detail']")" && exit 1; }
  [[ $state == done ]]
}
check_bytes() {
  wait_until 900 "the end of job $1" is_done "$1"
  on c2 "cmp /mnt/nfs/golden/SHA256SUMS /mnt/nfs/$1/SHA256SUMS && cd /mnt/nfs/$1 && sha256sum --quiet -c SHA256SUMS"
  on c2 "/host$BIN/jobctl fsck $ROOT/jobs/$(field "$1" "j['job']") --deep" | tail -n 2
  say "job $1: the bytes of the undisturbed run; stages on $(field "$1" "', '.join(s['node'] for s in j['stages'])"); restarts: $(field "$1" "j['restarts']")"
}
submit() { jobctl "submit --source /mnt/nfs/model --calib /mnt/nfs/tokens.jsonl --out /mnt/nfs/$1 --name $1 --seq-len 128 --shard-layers 1,1 --on c1,c2"; }
finish() {
  local host
  for host in "${!jobs[@]}"; do echo "-- last words of $host" && said "$host" | tail -n "${LINES_SAID:-25}"; done
  "$RIG" down
}

"$RIG" up
trap finish EXIT
"$RIG" mount c1 4.2 $OPTIONS
"$RIG" mount c2 4.2 $OPTIONS
mkdir -p "$SHARE/holdfast"
PYTHONPATH=$HERE/../crash python3 -B -c "import harness, shutil
shutil.rmtree('$SHARE/holdfast')
harness.make_model('$SHARE/holdfast/model', layers=2)
harness.make_tokens('$SHARE/holdfast/tokens.jsonl', samples=${SAMPLES:-48}, length=128)"
on c1 "rm -rf /mnt/nfs/model /mnt/nfs/golden* $ROOT /mnt/nfs/crash /mnt/nfs/cut /mnt/nfs/power && cp -r $SHARE/holdfast/* /mnt/nfs/"

say "the undisturbed run, one process on c1"
on c1 "/host$BIN/jobctl run --source /mnt/nfs/model --calib /mnt/nfs/tokens.jsonl --out /mnt/nfs/golden --device cpu --threads 1 --seq-len 128 --quiet"
jobctl "keygen c1 c2"
start_node c1
start_node c2
wait_until 120 "two nodes" eval "[[ \$(jobctl nodes | grep -c ' alive') -eq 2 ]]"
jobctl nodes

say "job crash: the NFS server loses power in the middle and is booted again"
submit crash
wait_until 300 "the first samples" has_samples crash 8
say "$(samples_done crash) cells done; server killed, down for 10 s"
"$RIG" srv-crash 10
say "server is back"
check_bytes crash

say "job cut: c2 is cut off for longer than T_suspect ($SUSPECT s), then its cable is back"
submit cut
wait_until 300 "the first samples" has_samples cut 8
"$RIG" cut c2
say "$(samples_done cut) cells done; c2 cut off"
sleep $((2 * SUSPECT))
jobctl status cut
"$RIG" heal c2
say "c2 is back"
check_bytes cut

say "job power: c2 loses power and is booted again"
submit power
wait_until 300 "the first samples" has_samples power 8
"$RIG" kill c2
say "$(samples_done power) cells done; c2 without power"
sleep 5
"$RIG" start c2
"$RIG" mount c2 4.2 $OPTIONS
start_node c2
check_bytes power

jobctl status
jobctl nodes
say "all three jobs ended in the bytes of the undisturbed run"
