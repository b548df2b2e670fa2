#!/bin/bash
# Build the controller-runtime informer that the benchmark of the watcher is compared with into the cache, and print its path.
. "$(dirname "$0")/../../tests/kind/lib.sh"

PEERS=$STATE/peers-$(cd "$ROOT/benches/peers" && hash_of "$(uname -m)" -- main.go go.mod go.sum build.sh)/peers
if [ ! -x "$PEERS" ]; then
  command -v go > /dev/null || die "cannot build benches/peers: Go is missing"
  locked "$0" "$@"
  mkdir -p "${PEERS%/*}"
  step "build benches/peers" env -C "$ROOT/benches/peers" CGO_ENABLED=0 GOWORK=off GOFLAGS= \
    nice -n 5 go build -buildvcs=false -trimpath -ldflags '-s -w' -o "$PEERS.tmp" .
  mv "$PEERS.tmp" "$PEERS"
fi
touch "${PEERS%/*}"
keep 2 "$STATE/peers"
echo "$PEERS"
