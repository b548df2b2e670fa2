#!/bin/bash
# The tests in a real cluster: bring up rollout-guard-test, load the images, run
# `cargo test --test e2e`, delete the cluster (not with KEEP=1). Arguments are
# for the test binary; THREADS scenarios run side by side (8: they wait most of the time). For the tests: KUBECONFIG, PATH, CLUSTER, NODE, NODE_EXEC
# (see cluster.sh env), IMAGE (the guard's reference), SAMPLE_IMAGE and KWOK.
. "$(dirname "$0")/lib.sh"
cluster=rollout-guard-test

"$HERE/cluster.sh" up "$cluster"
finish() {
  rc=$?
  if [ "$rc" != 0 ]; then
    say "e2e failed: the state of the cluster, then logs into target/kind/logs-$cluster"
    kubectl get nodes,deployments,pods --all-namespaces -o wide || true
    kubectl get events --all-namespaces --sort-by=.lastTimestamp | tail -n 60 || true
    kubectl logs --all-namespaces --prefix --tail=60 -l app.kubernetes.io/name=rollout-guard || true
    rm -rf "$OUT/logs-$cluster"
    timeout 120 "$HERE/cluster.sh" logs "$cluster" "$OUT/logs-$cluster" || true
  fi
  if [ "${KEEP:-}" = 1 ]; then
    say "KEEP=1: $cluster stays; eval \"\$(tests/kind/cluster.sh env $cluster)\""
  else
    "$HERE/cluster.sh" down "$cluster"
  fi
  exit "$rc"
}
trap finish EXIT
eval "$("$HERE/cluster.sh" env "$cluster")"
# The tag is the binary's hash, so that a cluster that was kept runs this build
# and not an earlier one of the same name.
IMAGE=$(IMAGE_TAG=${IMAGE_TAG:-content} "$HERE/image.sh" all "$cluster" | tail -n 1)
KWOK=$("$HERE/kwok.sh")
export IMAGE SAMPLE_IMAGE=localhost/sample KWOK
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$("$HERE/cargo-target.sh")}
export CARGO_TARGET_DIR
cd "$ROOT"
say "cargo test --test e2e, IMAGE=$IMAGE"
cargo test --locked --test e2e -- --include-ignored --nocapture --test-threads="${THREADS:-8}" "$@" < /dev/null
