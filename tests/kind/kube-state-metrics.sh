#!/bin/bash
# Build kube-state-metrics, whose series the alert on a generation mismatch
# reads, into the cache and print its path. It is no part of the node image, and
# it has a module of its own: it does not build with the client-go of the others.
. "$(dirname "$0")/lib.sh"

KUBE_STATE_METRICS=$STATE/kube-state-metrics-$(cd "$HERE" && hash_of "$(uname -m)" -- kube-state-metrics.sh go/kube-state-metrics/*)/kube-state-metrics
if [ ! -x "$KUBE_STATE_METRICS" ]; then
  command -v go > /dev/null ||
    die "cannot build kube-state-metrics: Go is missing" "install Go $(awk '$1 == "go" { print $2 }' "$HERE/go/kube-state-metrics/go.mod") or later and put it on PATH"
  locked "$0" "$@"
  # versions.env and go.mod have to tell the same story.
  grep -qx "require k8s.io/kube-state-metrics/v2 $KUBE_STATE_METRICS_VERSION" "$HERE/go/kube-state-metrics/go.mod" ||
    die "versions.env wants k8s.io/kube-state-metrics/v2 $KUBE_STATE_METRICS_VERSION, but tests/kind/go/kube-state-metrics/go.mod does not"
  mkdir -p "${KUBE_STATE_METRICS%/*}"
  step "build kube-state-metrics" env -C "$HERE/go/kube-state-metrics" CGO_ENABLED=0 GOWORK=off GOFLAGS= \
    nice -n 5 go build -buildvcs=false -trimpath -ldflags '-s -w' -o "$KUBE_STATE_METRICS.tmp" k8s.io/kube-state-metrics/v2
  mv "$KUBE_STATE_METRICS.tmp" "$KUBE_STATE_METRICS"
fi
touch "${KUBE_STATE_METRICS%/*}"
keep 2 "$STATE/kube-state-metrics"
echo "$KUBE_STATE_METRICS"
