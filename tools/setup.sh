# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What ./check and ./quickstart share: packages, the Python of the tokenizer helper, how many jobs to build with.
# Everything here is quick, silent and works without a network when it was done before. Sourced, with ROOT set.

readonly BUILD="$ROOT/build"
readonly VENV="$BUILD/venv"

# What Holdfast needs of Debian 12, to build and to test.
# shellcheck disable=SC2034
readonly PACKAGES=(
  build-essential cmake ninja-build ccache pkg-config
  libtorch-dev libopenblas0-pthread libzmq3-dev cppzmq-dev liblmdb-dev lmdb-utils libzstd-dev zstd
  nlohmann-json3-dev libcli11-dev libssl-dev libgtest-dev libgmock-dev
)

# What only tests need: the vector kernels on an emulated ARM.
# shellcheck disable=SC2034
readonly TEST_PACKAGES=(g++-aarch64-linux-gnu qemu-user)

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
  readonly BOLD=$'\033[1m' RED=$'\033[31m' PLAIN=$'\033[0m'
else
  readonly BOLD='' RED='' PLAIN=''
fi

say() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
die() {
  printf '%s%s: %s%s\n' "$RED" "$(basename "$0")" "$*" "$PLAIN" >&2
  exit 2
}

is_installed() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }

# Installs those of the named packages that are missing.
install_packages() {
  command -v dpkg-query >/dev/null || die "this is not a Debian system, so nothing was installed. Holdfast needs what Debian 12 calls
  $*
Install their like, then build by hand (README.md, \"Build\")."
  local missing=() package
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] && return
  [[ $(id -u) -eq 0 ]] || die "packages are missing and only root may install them. Type this, then the same line again:
  sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}"
  say "Installing ${missing[*]}"
  apt_get update
  apt_get install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install ${missing[*]}. Holdfast is built on Debian 12; on another release the names may differ."
}

has_modules() {  # PYTHON MODULE...
  local python=$1 list
  shift
  list=$(printf '%s, ' "$@")
  [[ -x $python ]] && "$python" -I -c "import ${list%, }" 2>/dev/null
}

# A virtual environment with the tokenizer helper's modules; sets HOLDFAST_PYTHON.
setup_python() {
  export HOLDFAST_PYTHON="$VENV/bin/python"
  has_modules "$HOLDFAST_PYTHON" tokenizers jinja2 && return
  python3 -c 'import venv, ensurepip' 2>/dev/null || install_packages python3 python3-venv
  say "Making a virtual environment for the tokenizer in $VENV"
  python3 -m venv "$VENV"
  pip_install tokenizers==0.23.3 jinja2==3.1.6
}

pip_install() {
  "$VENV/bin/pip" install --quiet --disable-pip-version-check "$@" || die "pip could not install $*; is there a network?"
}

# Parallel compilations: one per core, but never more than the memory allows (a libtorch source takes about 1.5 GB).
build_jobs() {
  local cores memory_kb limit jobs
  cores=$(nproc)
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
  [[ $limit != max && $((limit / 1024)) -lt $memory_kb ]] && memory_kb=$((limit / 1024))
  jobs=$((memory_kb / 1500000))
  [[ $jobs -gt $cores ]] && jobs=$cores
  [[ $jobs -lt 1 ]] && jobs=1
  echo "$jobs"
}

# Configures build/ and builds the named targets ("all": every one).
build() {
  local targets=() target
  for target in "$@"; do targets+=(--target "$target"); done
  say "Configuring"
  (cd "$ROOT" && cmake --preset default --log-level=STATUS)
  say "Building with $(build_jobs) jobs"
  cmake --build "$BUILD" -j "$(build_jobs)" "${targets[@]}"
}
