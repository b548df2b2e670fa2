#!/bin/bash
# The tests in real clusters: bring them up, load the images, run `cargo test
# --test e2e`, delete them (not with KEEP=1).
#
# Most scenarios only wait, and those that disturb a whole cluster each need one for
# themselves: so a half of those is in a second cluster, beside all the others
# (THREADS of them side by side, 4). With arguments, which are for the test binary, all of it
# is in rollout-guard-test.
#
# For the tests: KUBECONFIG, PATH, CLUSTER, NODE, NODE_EXEC
# (see cluster.sh env), IMAGE (the guard's reference), SAMPLE_IMAGE, and what
# is exported below.
. "$(dirname "$0")/lib.sh"

# What is run in the second cluster, about as long as all the rest.
half=(whole_cluster::{api_server,breaker,certificates,killed,restarts,scale}::)
clusters=(rollout-guard-test)
if [ $# = 0 ]; then clusters+=(rollout-guard-test-2); fi

all_up() { for cluster in "${clusters[@]}"; do "$HERE/cluster.sh" up "$cluster"; done; }

# run CLUSTER ARGS... : the test binary against this cluster; how long it took is said at the end
run() {
  local cluster=$1 environment begun=$EPOCHSECONDS
  shift
  environment=$("$HERE/cluster.sh" env "$cluster")
  eval "$environment"
  say "cargo test --test e2e in $cluster, IMAGE=$IMAGE"
  cargo test --locked --test e2e -- --include-ignored --nocapture "$@" < /dev/null || return
  say "e2e: all scenarios of $cluster in $((EPOCHSECONDS - begun)) s"
}

# told CLUSTER : what there is in it, after a failure
told() {
  eval "$("$HERE/cluster.sh" env "$1")"
  say "e2e failed: the state of $1, then logs into target/kind/logs-$1"
  kubectl get nodes,deployments,pods --all-namespaces -o wide || true
  kubectl get events --all-namespaces --sort-by=.lastTimestamp | tail -n 60 || true
  kubectl logs --all-namespaces --prefix --tail=60 -l app.kubernetes.io/name=rollout-guard || true
  rm -rf "$OUT/logs-$1"
  timeout 120 "$HERE/cluster.sh" logs "$1" "$OUT/logs-$1" || true
}

failed=()
finish() {
  rc=$?
  wait # for clusters that are just being made
  for cluster in "${failed[@]}"; do (told "$cluster"); done
  for cluster in "${clusters[@]}"; do
    if [ "${KEEP:-}" = 1 ]; then
      say "KEEP=1: $cluster stays; eval \"\$(tests/kind/cluster.sh env $cluster)\""
    else
      "$HERE/cluster.sh" down "$cluster"
    fi
  done
  exit "$rc"
}
trap finish EXIT

# Bringing up clusters is waiting for the most part, so it goes beside the builds.
all_up &
up=$!
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$("$HERE/cargo-target.sh")}
export CARGO_TARGET_DIR
# The tag is the binary's hash, so that a cluster that was kept runs this build
# and not an earlier one of the same name.
IMAGE=$(IMAGE_TAG=${IMAGE_TAG:-content} "$HERE/image.sh" all | tail -n 1)
(cd "$ROOT" && cargo test --locked --test e2e --no-run)
wait "$up"
for cluster in "${clusters[@]}"; do "$HERE/cluster.sh" load "$cluster" "$OUT"/{rollout-guard,sample}.tar; done
KWOK=$("$HERE/kwok.sh")
KUBE_STATE_METRICS=$("$HERE/kube-state-metrics.sh")
PROMETHEUS=$("$HERE/prometheus.sh")
CHROMIUM=$("$HERE/chromium.sh")
export IMAGE SAMPLE_IMAGE=localhost/sample KWOK KUBE_STATE_METRICS PROMETHEUS CHROMIUM
cd "$ROOT"
if [ $# != 0 ]; then
  failed=("${clusters[@]}")
  run rollout-guard-test --test-threads="${THREADS:-4}" "$@"
  failed=()
  exit
fi
run "${clusters[0]}" --test-threads="${THREADS:-4}" "${half[@]/#/--skip=}" & pids=($!)
# One after the other, by name: nothing comes after the last one, `scale`, whose thousand Deployments go with the cluster.
if [ "${KEEP:-}" != 1 ]; then export THROWAWAY=1; fi
run "${clusters[1]}" --test-threads=1 "${half[@]}" & pids+=($!)
for i in "${!pids[@]}"; do
  wait "${pids[i]}" || failed+=("${clusters[i]}")
done
[ ${#failed[@]} = 0 ] || exit 1
