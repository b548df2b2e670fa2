#!/bin/bash
# Build kwok, which plays nodes and pods for the scale scenario, into the cache
# and print its path. It is no part of the node image, and it has a directory
# and a key of its own: a change in tools.sh or in the modules behind it renews
# every Kubernetes program.
. "$(dirname "$0")/lib.sh"

KWOK=$STATE/kwok-$(cd "$HERE" && hash_of "$(uname -m)" -- kwok.sh go/kwok/*)/kwok
if [ ! -x "$KWOK" ]; then
  command -v go > /dev/null ||
    die "cannot build kwok: Go is missing" "install Go $(awk '$1 == "go" { print $2 }' "$HERE/go/kwok/go.mod") or later and put it on PATH"
  locked "$0" "$@"
  # versions.env and go.mod have to tell the same story.
  grep -qx "require sigs.k8s.io/kwok $KWOK_VERSION" "$HERE/go/kwok/go.mod" ||
    die "versions.env wants sigs.k8s.io/kwok $KWOK_VERSION, but tests/kind/go/kwok/go.mod does not"
  mkdir -p "${KWOK%/*}"
  step "build kwok" env -C "$HERE/go/kwok" CGO_ENABLED=0 GOWORK=off GOFLAGS= \
    nice -n 5 go build -buildvcs=false -trimpath -ldflags '-s -w' -o "$KWOK.tmp" sigs.k8s.io/kwok/cmd/kwok
  mv "$KWOK.tmp" "$KWOK"
fi
touch "${KWOK%/*}"
keep 2 "$STATE/kwok"
echo "$KWOK"
