#!/bin/bash
# An archive of a release, as krew unpacks it: the program under the name by which
# kubectl finds it, and the license. The same input gives the same bytes.
#
#     archive.sh DIR                     builds this tree for this machine (linux)
#     archive.sh DIR BINARY OS-ARCH      of a binary that is there, such as linux-arm64
#
# The last line on stdout is the archive.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
die() { echo "error: $1" >&2; exit 1; }
[ $# = 1 ] || [ $# = 3 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
dir=$1 binary=${2:-} platform=${3:-}

if [ -z "$binary" ]; then
  [ "$(uname -s)" = Linux ] || die "this script builds for Linux only: give BINARY and OS-ARCH"
  case $(uname -m) in
    x86_64) platform=linux-amd64 ;;
    aarch64) platform=linux-arm64 ;;
    *) die "no platform of krew: $(uname -m)" ;;
  esac
  # As the image: static, so that it runs wherever kubectl does.
  target=$(rustc -vV | sed -n 's/^host: //p')
  flags=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<< "$target")_RUSTFLAGS
  export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$("$root/tests/kind/cargo-target.sh")}
  (cd "$root" && env -u RUSTFLAGS "$flags=-C target-feature=+crt-static" \
    cargo build --release --locked --bin rollout-guard --target "$target") >&2
  binary=$CARGO_TARGET_DIR/$target/release/rollout-guard
fi
[ -f "$binary" ] || die "there is no $binary"

mkdir -p "$dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$root/LICENSE" "$work/LICENSE"
case $platform in
  windows-amd64 | windows-arm64)
    program=kubectl-rollout_guard.exe archive=$dir/rollout-guard-$platform.zip
    install -m 755 "$binary" "$work/$program"
    command -v zip > /dev/null || die "zip is not installed"
    touch -d @0 "$work/LICENSE" "$work/$program"
    rm -f "$archive"
    (cd "$work" && TZ=UTC zip -qX - LICENSE "$program") > "$archive"
    ;;
  linux-amd64 | linux-arm64 | darwin-amd64 | darwin-arm64)
    program=kubectl-rollout_guard archive=$dir/rollout-guard-$platform.tar.gz
    install -m 755 "$binary" "$work/$program"
    tar -C "$work" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - LICENSE "$program" |
      gzip -n > "$archive"
    ;;
  *) die "not a platform of this plugin: $platform" ;;
esac
echo "$archive"
