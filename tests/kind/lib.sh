# shellcheck shell=bash
# What the scripts of this directory share: places, keys, progress, the lock.
# To be sourced.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
. "$HERE/versions.env"

CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/rollout-guard
STATE=$CACHE/kind
# shellcheck disable=SC2034 # used by those who source this
OUT=$ROOT/target/kind
mkdir -p "$STATE/log" "$STATE/clusters"

# Everything that is built has its inputs' hash in its name: a changed script,
# go.mod or version means another name, and there is nothing to invalidate.
hash_of() { # WORD... -- FILE... : a hash over words and over files, by the names given
  local words=()
  while [ "$1" != -- ]; do words+=("$1"); shift; done
  shift
  { echo "${words[@]}"; sha256sum "$@"; } | sha256sum | cut -c1-12
}
# (subshells, and cd first: the patterns are of this directory)
tools_key() (cd "$HERE" && hash_of "$(uname -m)" "$KUBE_VERSION" -- tools.sh go/{kube,coredns,kind,pause}/*)
base_key() (cd "$HERE" && hash_of "$(uname -m)" "$DEBIAN_SUITE" -- node/packages)
node_key() (cd "$HERE" && hash_of "$(tools_key)" "$(base_key)" "$ETCD_TAG" "$COREDNS_TAG" "$PAUSE_TAG" -- build-node.sh mkimage.py node/*)

TOOLS=$STATE/tools-$(tools_key)
BIN=$TOOLS/bin
# shellcheck disable=SC2034 # used by those who source this
BUILT_IMAGE=localhost/rollout-guard/node:$KUBE_VERSION-$(node_key)
export PATH=$BIN:$PATH

# --- progress: plain lines, made for logs without a terminal -----------------
export ROLLOUT_GUARD_T0=${ROLLOUT_GUARD_T0:-$EPOCHSECONDS}
say() { printf '[%(%T)T +%ss] %s\n' -1 $((EPOCHSECONDS - ROLLOUT_GUARD_T0)) "$*" >&2; }
die() {
  echo "error: $1" >&2
  shift
  if [ $# -gt 0 ]; then printf '  %s\n' "$@" >&2; fi
  exit 1
}

# step LABEL COMMAND... : run an external command with its output in a log that
# is shown only when it fails, and say every 30 s that it still runs. (Not for
# functions: bash would switch `set -e` off inside them.)
step() {
  local label=$1 log t0=$EPOCHSECONDS rc=0 beat
  shift
  log=$STATE/log/${label//[^A-Za-z0-9.-]/_}.log
  say "$label"
  (
    # `read -t` on a pipe that never speaks is a sleep without a child process,
    # so nothing is left behind to hold our output open once this is killed.
    exec {quiet}<> <(:)
    while :; do
      read -r -t 30 -u "$quiet" || true
      say "$label: still at it, $((EPOCHSECONDS - t0)) s"
    done
  ) &
  beat=$!
  "$@" < /dev/null > "$log" 2>&1 || rc=$?
  kill "$beat" 2> /dev/null || true
  wait "$beat" 2> /dev/null || true
  if [ "$rc" != 0 ]; then
    say "$label: FAILED (exit $rc) after $((EPOCHSECONDS - t0)) s; the end of $log:"
    tail -n 40 "$log" | sed 's/^/  | /' >&2
    return "$rc"
  fi
  printf '%(%F %T)T\t%s\t%s s\n' -1 "$label" $((EPOCHSECONDS - t0)) >> "$STATE/times.tsv"
  say "$label: done in $((EPOCHSECONDS - t0)) s"
}

# locked SCRIPT ARGS... : go on as this script, but alone on this machine. The
# lock is held by flock(1) and closed for all that it starts (--close), so that
# a container's monitor that stays behind does not hold it for ever.
locked() {
  if [ -n "${ROLLOUT_GUARD_LOCKED:-}" ]; then return 0; fi
  export ROLLOUT_GUARD_LOCKED=1
  local lock=$STATE/lock rc=0
  flock --nonblock --close --conflict-exit-code 75 "$lock" "$@" || rc=$?
  if [ "$rc" = 75 ]; then
    say "another run has the lock ($lock): waiting for it"
    rc=0
    flock --wait 3600 --close --conflict-exit-code 75 "$lock" "$@" || rc=$?
    if [ "$rc" = 75 ]; then die "the other run did not end within an hour"; fi
  fi
  exit "$rc"
}

# keep N PREFIX : of the cache entries PREFIX-<key> keep the N used last
keep() {
  local n=$1 old
  ls -dt "$2"-* 2> /dev/null | tail -n "+$((n + 1))" | while read -r old; do
    say "removing the older $old"
    discard "$old"
  done
}

# discard DIR : remove a tree that a killed run may have left mounts in
discard() {
  local at
  awk -v d="$1/" 'index($2, d) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r at; do
    umount --lazy "$at" || true
  done
  rm -rf --one-file-system "$1"
}

# --- podman ------------------------------------------------------------------
# podman asks for RLIMIT_NOFILE and RLIMIT_NPROC of 1048576 unless told
# otherwise, and raising a hard limit takes CAP_SYS_RESOURCE, which root in a
# sandbox may lack: ask for no more than is there. runc, because crun refuses
# a cgroup2 mount beside cgroup v1. netavark by name, because podman otherwise
# may settle for CNI, whose plugins are not installed on the machine.
podman_settings() {
  export KIND_EXPERIMENTAL_PROVIDER=podman
  if [ "$(id -u)" != 0 ]; then return 0; fi
  local nofile nproc pid_max
  nofile=$(ulimit -Hn) nproc=$(ulimit -Hu)
  read -r pid_max < /proc/sys/kernel/pid_max
  if [ "$nofile" = unlimited ]; then nofile=1048576; fi
  if [ "$nproc" = unlimited ] || [ "$nproc" -gt "$pid_max" ]; then nproc=$pid_max; fi
  # (a name of its own: several of these scripts may run at the same time)
  cat > "$STATE/.containers.conf.$$" << CONF
[containers]
default_ulimits = ["nofile=$nofile:$nofile", "nproc=$nproc:$nproc"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
CONF
  mv "$STATE/.containers.conf.$$" "$STATE/containers.conf"
  export CONTAINERS_CONF=$STATE/containers.conf
}

# podman notices a reboot by an empty /run. Where /run outlives one (it is not a
# tmpfs everywhere), podman goes on to believe in containers, mounts and a name
# server of the last boot. Take its marks away and it refreshes its state.
podman_after_reboot() {
  local alive=/run/libpod/alive booted
  booted=$(awk '$1 == "btime" { print $2 }' /proc/stat)
  if [ ! -e "$alive" ] || [ "$(stat -c %Y "$alive")" -ge "$booted" ]; then return 0; fi
  say "podman's state is of an earlier boot: letting it refresh"
  rm -rf "$alive" "$alive.lck" /run/containers/networks/aardvark-dns
}
