#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the fuzzers with libFuzzer, AddressSanitizer and UBSan. Needs clang with libFuzzer (Debian 12: apt-get install clang).
#
#   tests/fuzz/run.sh [SECONDS [NAME...]]    each fuzzer (or the named ones: wire, pack, ...) for SECONDS, default 60
#
# FUZZ_BUILD names the build folder (default build-fuzz). What was learned stays in its corpus/, so that the next run goes on from there;
# findings lie in its findings/: fix, add a test, and copy the input into tests/fuzz/seeds/NAME. Exit status 1: there are findings.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${FUZZ_BUILD:-$ROOT/build-fuzz}
readonly ROOT BUILD

main() {
  local seconds=${1:-60} names=("${@:2}") name failed=0
  build
  if [[ ${#names[@]} -eq 0 ]]; then
    for name in "$ROOT"/tests/fuzz/seeds/*/; do names+=("$(basename "$name")"); done
  fi
  mkdir -p "$BUILD/findings"
  for name in "${names[@]}"; do
    if [[ $name == canary ]]; then
      run_canary || failed=1
    else
      run_one "$name" "$seconds" || failed=1
    fi
  done
  return "$failed"
}

build() {
  local log="$BUILD/build.log"
  mkdir -p "$BUILD"
  (cd "$ROOT" && cmake --preset fuzz -B "$BUILD" && cmake --build "$BUILD" --target fuzzers) >"$log" 2>&1 ||
    { tail -n 20 "$log"; echo "run.sh: the fuzzers were not built; is clang there? The whole log: $log"; exit 2; }
}

run_one() {  # NAME SECONDS
  local name=$1 corpus="$BUILD/corpus/$1" log="$BUILD/findings/$1.log" status=0
  mkdir -p "$corpus"
  "$BUILD/tests/fuzz/${name}_fuzz" -max_total_time="$2" -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=64 -max_len=16384 \
    -dict="$ROOT/tests/fuzz/words.dict" -print_final_stats=1 -artifact_prefix="$BUILD/findings/$name-" \
    "$corpus" "$ROOT/tests/fuzz/seeds/$name" >"$log" 2>&1 || status=$?
  printf '%-16s %10s inputs, coverage %6s, %s\n' "$name" "$(stat_of number_of_executed_units "$log")" "$(coverage_of "$log")" \
    "$([[ $status -eq 0 ]] && echo "no finding" || echo "A FINDING: $log")"
  return "$((status != 0))"
}

# The alarm rings.
run_canary() {
  if "$BUILD/tests/fuzz/canary_fuzz" -max_total_time=20 -artifact_prefix="$BUILD/findings/canary-" >"$BUILD/findings/canary.log" 2>&1; then
    echo "canary: was to fail, and did not"
    return 1
  fi
  rm -f "$BUILD"/findings/canary-crash-*
}

stat_of() { sed -n "s/^stat::$1: *//p" "$2"; }
coverage_of() { sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$1" | tail -n 1; }

main "$@"
