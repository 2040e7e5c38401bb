# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the scenarios of nfs_test.sh share: hosts, daemons, jobs, waiting, and the three things that each scenario ends in. To be sourced with
# RIG, BIN, SCENARIO and VERSION set.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE SHARE=${NFSRIG_DIR:?folder of the rig}/share
readonly OPTIONS=lookupcache=positive,noatime,timeo=600,retrans=2
readonly SUSPECT=${SUSPECT:-20} SAMPLES=${SAMPLES:-96}
export NFSRIG_DIR NFSRIG_TIMEOUT=900
declare -A ADDRESS=([c1]=10.99.0.11 [c2]=10.99.0.12)
ROOT=/mnt/nfs/root.v$VERSION
asked=c1   # whose jobctl is asked
kills=0    # power cuts, pauses, cables pulled ... so far

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
fail() { say "FAILED: $*" && exit 1; }
on() { "$RIG" exec "$@"; }
hurt() { # WHAT: said before it is done, and only while samples are left
  local now
  now=$(cells)
  [[ $now != $((2 * SAMPLES)) ]] || fail "all samples were done before this: $1; SAMPLES=$((2 * SAMPLES)) makes the job longer"
  kills=$((kills + 1)) && say "$now cells done; $1"
}

# ---- hosts and daemons ----
# Starting a daemon on an emulated host takes a minute, so those that live are kept from one scenario to the next: HOST.stem is the job of the
# rig that runs it, HOST.what says how it was started, HOST.mark how much it had said when the scenario began.

of() { echo "$SHARE/holdfast/$1.$2"; }
host_ready() { # HOST HOSTNAME: mounted anew, so that name and version count
  local mount="hostname $2; for i in 1 2 3 4; do mountpoint -q /mnt/nfs || exit 0; umount /mnt/nfs || sleep 1; done; ! mountpoint -q /mnt/nfs"
  ! "$RIG" status | grep -q "^$1 .* dead" || "$RIG" start "$1"
  if ! on "$1" "$mount"; then # something hangs there: only a boot helps
    "$RIG" kill "$1" && "$RIG" start "$1" && on "$1" "$mount"
  fi
  "$RIG" mount "$1" "$VERSION" "$OPTIONS" >/dev/null
}
start_node() { # HOST NODE [OPTIONS...]
  local stem
  stem=$("$RIG" spawn "$1" "echo \$\$ >$(of "$1" pid)
    exec /host$BIN/holdfastd --root $ROOT --name $2 --listen ${ADDRESS[$1]} --device cpu --threads 1 --memory 950MB --suspect $SUSPECT ${*:3}")
  echo "$stem" >"$(of "$1" stem)"
  echo "$stem" >>"$(of all stems)"
  echo 0 >"$(of "$1" mark)"
  echo "$(hostname_of "$1") $2 $VERSION $ROOT $BIN" >"$(of "$1" what)"
}
hostname_of() { on "$1" hostname; }
boot() { # HOST: it has power again, and its daemon is started as an init system would
  "$RIG" start "$1"
  host_ready "$1" "$1"
  start_node "$1" "$1"
}
is_daemon() { echo "grep -q holdfastd /proc/\$(cat $(of "$1" pid))/cmdline"; } # the host may have been booted anew since, and the number be another's
stop_node() { # HOST [SIGNAL]
  on "$1" "$(is_daemon "$1") && kill -${2:-TERM} \$(cat $(of "$1" pid)) 2>/dev/null; rm -f $(of "$1" pid)" 2>/dev/null || true
}
has_ended() { [[ -e $(cat "$(of "$1" stem)").rc ]]; }
status_of() { cat "$(cat "$(of "$1" stem)").rc"; }
lives() { # HOST HOSTNAME NODE: a daemon of an earlier scenario that will do
  [[ -e $(of "$1" what) ]] && [[ $(cat "$(of "$1" what)") == "$2 $3 $VERSION $ROOT $BIN" ]] &&
    on "$1" "$(is_daemon "$1")" 2>/dev/null
}
everything_said() { cat "$(cat "$(of "$1" stem)")".{out,err}; }
said() { everything_said "$1" | tail -n "+$(($(cat "$(of "$1" mark)") + 1))"; }
has_said() { said "$1" | grep -Eq "$2"; }

# ---- jobs ----

jobctl() { on "$asked" "/host$BIN/jobctl --root $ROOT $*"; }
name() { cat "$(of job name)"; } # every job has one of its own
out() { echo "/mnt/nfs/out/$(name)"; }
submit() { # [OPTIONS...]: two stages
  echo "$SCENARIO-$(date +%H%M%S)" >"$(of job name)"
  jobctl "submit --source /mnt/nfs/model --calib /mnt/nfs/tokens.jsonl --out $(out) --name $(name) --seq-len 128 --shard-layers 1,1 $*" >/dev/null
}
field() { jobctl "status $(name) --json" | python3 -c "import json, sys; d = json.load(sys.stdin); j = d['jobs'][0]; n = d['nodes']; print($1)"; }
cells() { field "sum(s['samples_done'] for s in j['stages'])" 2>/dev/null || echo '?'; }
nodes_alive() { [[ $(jobctl nodes | grep -c ' alive') -eq $1 ]]; }
has_cells() {
  local now
  now=$(cells)
  [[ $now =~ ^[0-9]+$ && $now -ge $1 ]]
}
holders() { field "', '.join(s['node'] for s in j['stages'])"; }
is_taken_over() { [[ $(field "len(j['stages'][$1]['claims'])") -ge 2 ]]; }
is_done() {
  local state
  state=$(field "j['state']")
  [[ $state != failed ]] || fail "$(field "j['detail']")"
  [[ $state == 'done' ]]
}

wait_until() { # SECONDS WHAT CMD...: until the command succeeds
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [[ $SECONDS -lt $end ]] || fail "$what never came"
    sleep 2
  done
}

# ---- beginning and end ----

# Model, tokens and the output of a run that nothing disturbs, made by one process on c1; once for these programs.
make_golden() {
  local made
  made=/mnt/nfs/golden.$(sha256sum "$BIN/holdfast-worker" | head -c 12)
  ! on c1 "test -e $made/done.$SAMPLES" || return 0
  rm -rf "$SHARE/holdfast/model"
  PYTHONPATH=$HERE/../crash python3 -B -c "import harness
harness.make_model('$SHARE/holdfast/model', layers=2)
harness.make_tokens('$SHARE/holdfast/tokens.jsonl', samples=$SAMPLES, length=128)"
  say "the undisturbed run, one process on c1"
  on c1 "rm -rf /mnt/nfs/* && cp -r $SHARE/holdfast/model $SHARE/holdfast/tokens.jsonl /mnt/nfs/
    /host$BIN/jobctl run --source /mnt/nfs/model --calib /mnt/nfs/tokens.jsonl --out $made --device cpu --threads 1 --seq-len 128 --quiet >/dev/null
    touch $made/done.$SAMPLES && ln -sfn $made /mnt/nfs/golden && sync"
}
begin() { # HOST:HOSTNAME:NODE...: daemons of these names, and only these
  local host name node want names=()
  mkdir -p "$SHARE/holdfast"
  : >>"$(of all stems)"
  say "scenario $SCENARIO over v$VERSION, Linux $(on srv 'uname -r')"
  for want in "$@"; do
    IFS=: read -r host name node <<<"$want"
    names+=("$node")
    lives "$host" "$name" "$node" || { stop_node "$host" KILL && host_ready "$host" "$name" && rm -f "$(of "$host" what)"; }
  done
  make_golden
  on c1 "mkdir -p /mnt/nfs/out; dmesg -C"
  on c2 "dmesg -C"
  jobctl "keygen ${names[*]}" | grep made || true
  for want in "$@"; do
    IFS=: read -r host name node <<<"$want"
    if [[ -e $(of "$host" what) ]]; then everything_said "$host" | wc -l >"$(of "$host" mark)"; else start_node "$host" "$node"; fi
  done
  wait_until 300 "$# nodes" nodes_alive $#
}
fresh_root() { # NAME: of its own, nobody works there yet
  ROOT=$1.v$VERSION
  rm -f "$(of c1 what)" "$(of c2 what)"
  : >"$(of all stems)"
  on srv "rm -rf /export/${ROOT#/mnt/nfs/}"
}

check_signals() { # nobody was ended by SIGABRT, SIGSEGV or the like
  local stem rc host
  while read -r stem; do
    rc=$(cat "$stem.rc" 2>/dev/null || echo 0)
    [[ $rc -lt 132 || $rc -eq 137 || $rc -eq 143 ]] || fail "a holdfastd ended with $rc: $stem"
    ! grep -E 'signal (4|6|7|8|11)\b' "$stem.out" "$stem.err" || fail "a worker ended by such a signal: $stem"
  done <"$(of all stems)"
  for host in c1 c2; do
    "$RIG" status | grep -q "^$host .* dead" || ! on "$host" "dmesg | grep -E 'segfault|traps: (holdfast|jobctl)'" || fail "a program crashed on $host"
  done
}
check_bytes() {
  wait_until 900 "the end of job $SCENARIO" is_done
  on "$asked" "cmp /mnt/nfs/golden/SHA256SUMS $(out)/SHA256SUMS && cd $(out) && sha256sum --quiet -c SHA256SUMS" || fail "other bytes than the undisturbed run"
  on "$asked" "/host$BIN/jobctl fsck $ROOT/jobs/$(field "j['job']") --deep" | tail -n 3 || fail "fsck --deep is not content"
  check_signals
  say "job $SCENARIO over v$VERSION: the bytes of the undisturbed run, fsck --deep clean; $(field "'stages on %s; restarts %s; stale records %d' % (', '.join(s['node'] for s in j['stages']), j['restarts'], j['stale_records'])"); $kills kills"
}
finish() {
  local rc=$? host
  for host in c1 c2; do
    echo "-- last words of $host"
    said "$host" 2>/dev/null | tail -n "${LINES_SAID:-25}" | sed 's/^/    /'
    [[ $rc -eq 0 ]] || "$RIG" heal "$host"
  done
  [[ $rc -eq 0 ]] || timeout 30 "$RIG" exec "$asked" "/host$BIN/jobctl --root $ROOT status $(name); /host$BIN/jobctl --root $ROOT cancel $(name)" || true
  [[ -n ${KEEP_RIG:-} ]] || "$RIG" down
  exit $rc
}
