#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Two nodes on one host: two daemons on loopback, one job over both, one of them killed on the way and started again.
#
#   examples/two-nodes-on-one-host/run.sh                    with SmolLM2 if ./quickstart has made it, else with a tiny random model
#   examples/two-nodes-on-one-host/run.sh MODEL CALIB.jsonl  with a model of your own (HOLDFAST_PYTHON as for jobctl run)
#
# Needs build/bin (./quickstart or cmake). Everything lies under build/two-nodes, which each call begins anew; the daemons end with the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly BIN=${HOLDFAST_BIN:-build/bin} WORK=build/two-nodes
export HOLDFAST_ROOT=$WORK/root
declare -A daemons=()

say() { printf '\n== %s\n' "$*"; }
show() { echo "\$ $*" && "$@"; }
jobctl() { "$BIN/jobctl" "$@"; }

start_node() {
  "$BIN/holdfastd" --name "$1" --threads "$THREADS" >>"$WORK/$1.log" 2>&1 &
  daemons[$1]=$!
}

stop_nodes() {
  kill -TERM "${daemons[@]}" 2>/dev/null || true
  wait "${daemons[@]}" 2>/dev/null || true
}

choose_model() {
  local made=build/quickstart
  if [[ $# -eq 2 ]]; then
    MODEL=$1 CALIB=$2
  elif [[ -d $made/SmolLM2-135M-Instruct && -f $made/calib.jsonl ]]; then
    MODEL=$made/SmolLM2-135M-Instruct CALIB=$made/calib.jsonl
    export HOLDFAST_PYTHON=${HOLDFAST_PYTHON:-build/venv/bin/python}
  else
    MODEL=$WORK/model CALIB=$WORK/tokens.jsonl
    PYTHONPATH=tests/crash python3 -B -c "import harness
harness.make_model('$MODEL', layers=8, hidden=256, ffn=1024)
harness.make_tokens('$CALIB', samples=32, length=512)"
  fi
}

field() { # JOB EXPRESSION of what `jobctl status JOB --json` says of it; docs/status-json.md names the fields
  jobctl status "$1" --json | python3 -c "import json, sys; job = json.load(sys.stdin)['jobs'][0]; print($2)" 2>/dev/null || echo 0
}
samples_done() { field "$1" 'sum(s["samples_done"] for s in job["stages"])'; }
has_ended() { [[ $(field "$1" 'job["state"]') =~ ^(done|failed|cancelled)$ ]]; }

[[ $# -eq 0 || $# -eq 2 ]] || { sed -n '4,9s/^# \{0,1\}//p' "$0" && exit 2; }
[[ -x $BIN/holdfastd ]] || { echo "no $BIN/holdfastd: type ./quickstart, or cmake --preset default && cmake --build --preset default" && exit 1; }
rm -rf "$WORK" && mkdir -p "$WORK"
choose_model "$@"
readonly MODEL CALIB THREADS=$((($(nproc) + 1) / 2))

say "Two nodes that share $HOLDFAST_ROOT"
trap stop_nodes EXIT
start_node n1
start_node n2
until [[ $(jobctl nodes 2>/dev/null | grep -c alive) -eq 2 ]]; do sleep 0.2; done
show jobctl nodes

say "One job for both"
show jobctl submit --source "$MODEL" --calib "$CALIB" --out "$WORK/out" --name demo --samples 32

until [[ $(samples_done demo) -ge 16 ]]; do sleep 0.2; done
say "kill -9 ${daemons[n2]} (node n2, its worker goes with it), and start it again as an init system would"
kill -KILL "${daemons[n2]}"
wait "${daemons[n2]}" 2>/dev/null || true
start_node n2
show jobctl status
until has_ended demo; do sleep 0.5; done

say "What it was like"
show jobctl status demo
show jobctl verify "$WORK/out" --source "$MODEL"
say "Done: $WORK/out. The logs of the nodes: $WORK/n1.log, $WORK/n2.log"
