#!/bin/bash
# Print where `make` lets cargo build: a directory of the cache, so that a clean
# clone compiles our own crate only. There is one for each compiler; that of
# the compiler before is kept. Cargo.lock is not in the name: cargo itself tells the
# versions of a crate apart, and one changed line should not cost all the rest.
# What it leaves behind that way is swept when it has grown too large.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/rollout-guard/cargo
limit_mb=20000

# in the repository, for its rust-toolchain.toml
key=$(cd "$root" && rustc -vV | sha256sum | cut -c1-12)
mkdir -p "$cache"
# (not while a cargo runs: it may be building in there)
if [ -d "$cache/$key" ] && [ "$(du -sm "$cache/$key" | cut -f1)" -gt "$limit_mb" ] &&
  ! pgrep -x cargo > /dev/null; then
  rm -rf "${cache:?}/$key"
fi
mkdir -p "$cache/$key"
# Cargo tells by the times of files whether they have changed, and takes two clones for one: what another has built since a
# file was written here would pass for this one's. So a clone that comes after another counts as changed as a whole.
if [ "$(cat "$cache/$key/clone" 2> /dev/null)" != "$root" ]; then
  find "$root" -path "$root/target" -prune -o -path "$root/.git" -prune -o -type f -exec touch -c {} +
  echo "$root" > "$cache/$key/clone"
fi
touch "$cache/$key"
ls -t "$cache" | tail -n +3 | sed "s#^#$cache/#" | xargs -r rm -rf
echo "$cache/$key"
