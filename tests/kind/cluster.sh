#!/bin/bash
# The kind clusters of this project. See README.md beside this file.
#
#     cluster.sh up NAME             a cluster that answers, made only where none does
#     cluster.sh down NAME           gone, with its kubeconfig
#     cluster.sh status NAME         one line; exit 0 up, 1 dead, 2 none
#     cluster.sh load NAME ARCHIVE   image archives into its node(s)
#     cluster.sh kubeconfig NAME     the path of its kubeconfig
#     cluster.sh env NAME            `export` lines: KUBECONFIG, PATH, CLUSTER, NODE, NODE_EXEC ...
#     cluster.sh logs NAME DIR       what kind collects: journals and pod logs
#
# NAME is rollout-guard (the default; kubeconfig target/kind/kubeconfig) or
# rollout-guard-SOMETHING (target/kind/kubeconfig-SOMETHING).
#
# ROLLOUT_GUARD_NODE=kindest|built says where the node image comes from;
# without it: kindest/node where an engine has it or can pull it, else built.
. "$(dirname "$0")/lib.sh"

command=${1:-help} CLUSTER=${2:-rollout-guard}
case $CLUSTER in
  rollout-guard) KUBECONFIG=$OUT/kubeconfig ;;
  rollout-guard-*) KUBECONFIG=$OUT/kubeconfig-${CLUSTER#rollout-guard-} ;;
  *) die "a cluster of this project is called rollout-guard or rollout-guard-SOMETHING, not $CLUSTER" ;;
esac
export KUBECONFIG
NODE=$CLUSTER-control-plane
RECORD=$STATE/clusters/$CLUSTER # how the cluster was made
ADMIN=$RECORD.kubeconfig        # its kubeconfig; each clone of the repository gets a copy
ENGINE="" SOURCE="" IMAGE="" INPUTS=""

main() {
  case $command in
    up | down | load) locked "$0" "$@" ;;&
    up) up ;;
    down) down ;;
    load) shift 2; load "$@" ;;
    status) status ;;
    kubeconfig) echo "$KUBECONFIG" ;;
    env) environment ;;
    logs) recall; logs "$3" ;;
    *) sed -n '2,/^\. /s/^# \{0,1\}//p' "$0"; [ "$command" = help ] || exit 2 ;;
  esac
}

up() {
  podman_after_reboot
  if [ -f "$RECORD" ]; then
    recall
    if answers; then
      # Somebody may be at work in it, so it is never taken away here, whatever
      # has changed: that is for `down`, which says what it does.
      if [ "$INPUTS" != "$(inputs)" ]; then
        say "NOTE: $CLUSTER was made from other inputs (kind-config.yaml or the node image have changed since); it is used as it is. To renew it: cluster.sh down $CLUSTER, then up"
      fi
      publish
      say "$CLUSTER is up: KUBECONFIG=$KUBECONFIG"
      return
    fi
    say "$CLUSTER is there but dead (its node or its API server does not answer): making it anew"
    destroy
  fi
  choose
  destroy # what a killed run may have left without a record
  create || { say "once more, from scratch"; destroy; create; } ||
    die "$CLUSTER could not be made" "kind's logs: $OUT/logs-$CLUSTER"
  publish
  say "$CLUSTER is up: KUBECONFIG=$KUBECONFIG"
}

down() {
  podman_after_reboot
  if [ -f "$RECORD" ]; then recall; else engine_settings; fi
  destroy
  rm -f "$KUBECONFIG"
  say "$CLUSTER is gone"
}

status() {
  if [ ! -f "$RECORD" ]; then echo "$CLUSTER: none"; exit 2; fi
  recall
  if ! answers; then echo "$CLUSTER: dead ($ENGINE, $IMAGE)"; exit 1; fi
  echo "$CLUSTER: up ($ENGINE, $IMAGE), KUBECONFIG=$KUBECONFIG"
}

load() {
  local archive
  recall
  for archive in "$@"; do
    step "load ${archive##*/} into $CLUSTER" timeout 300 kind load image-archive "$archive" --name "$CLUSTER"
  done
}

# kind asks for crictl too, which a node that was built here does not have: it then
# complains at the end, after all else has been written.
logs() {
  kind export logs --name "$CLUSTER" "$1" < /dev/null > "$STATE/log/export.log" 2>&1 || true
  say "logs of $CLUSTER: $(find "$1" -type f | wc -l) files in $1"
}

# For `eval`, and for people: everything that a test needs to use this cluster.
environment() {
  if [ ! -f "$RECORD" ]; then die "there is no cluster $CLUSTER" "make it: tests/kind/cluster.sh up $CLUSTER"; fi
  recall
  printf 'export %s=%q\n' KUBECONFIG "$KUBECONFIG" CLUSTER "$CLUSTER" NODE "$NODE" NODE_EXEC "$ENGINE exec" \
    KIND_EXPERIMENTAL_PROVIDER "$ENGINE"
  if [ -n "${CONTAINERS_CONF:-}" ]; then printf 'export CONTAINERS_CONF=%q\n' "$CONTAINERS_CONF"; fi
  printf 'export PATH=%q:"$PATH"\n' "$BIN"
}

# --- making and unmaking -----------------------------------------------------
# The record is read, not sourced: three lines, nothing to execute.
recall() {
  { read -r ENGINE && read -r SOURCE && read -r IMAGE && read -r INPUTS; } < "$RECORD" || true
  engine_settings
}

engine_settings() {
  ENGINE=${ENGINE:-podman}
  if [ "$ENGINE" = podman ]; then podman_settings; else export KIND_EXPERIMENTAL_PROVIDER=docker; fi
}

# What a cluster depends on. A kindest/node found on the machine stays good while
# the wanted version does; our own changes with its inputs.
inputs() {
  local image
  if [ "$SOURCE" = built ]; then image=$BUILT_IMAGE; else image=kindest/node:$KUBE_VERSION; fi
  (cd "$ROOT" && hash_of "$SOURCE" "$image" -- kind-config.yaml tests/kind/audit-policy.yaml)
}

# Alive is: the node can be entered, the API server says it is ready, and so does
# the node. A container engine's processes do not outlive a reboot or the end
# of whoever started them, so dead clusters are a matter of course: they are
# found out within seconds and never waited for. Nodes that kwok played, in a
# test that was killed, say nothing about the cluster.
answers() {
  [ -f "$ADMIN" ] &&
    kubectl --kubeconfig "$ADMIN" --request-timeout=3s get --raw /readyz > /dev/null 2>&1 &&
    timeout 10 "$ENGINE" exec "$NODE" true > /dev/null 2>&1 &&
    kubectl --kubeconfig "$ADMIN" --request-timeout=10s wait --for=condition=Ready nodes -l 'type!=kwok' --timeout=20s > /dev/null 2>&1
}

# Which engine, which node image; and the programs that go with them.
choose() {
  local engine engines=() want=${ROLLOUT_GUARD_NODE:-auto} kindest=kindest/node:$KUBE_VERSION
  case $want in auto | kindest | built) ;; *) die "ROLLOUT_GUARD_NODE is kindest or built, not $want" ;; esac
  if [ "$want" != built ]; then
    for engine in docker podman; do
      # a client without an engine behind it is not an engine
      if command -v "$engine" > /dev/null && timeout 15 "$engine" info > /dev/null 2>&1; then engines+=("$engine"); fi
    done
    for engine in "${engines[@]}"; do
      if timeout 15 "$engine" image inspect "$kindest" > /dev/null 2>&1; then use "$engine" kindest "$kindest"; return; fi
    done
    if [ "$want" = auto ] && have_built_image; then use podman built "$BUILT_IMAGE"; return; fi
    for engine in "${engines[@]}"; do
      # ask for the manifest first: where no registry answers, that is found out soon
      if timeout 20 "$engine" manifest inspect "$kindest" > /dev/null 2>&1 &&
        step "$engine pull $kindest" timeout 900 "$engine" pull "$kindest"; then
        use "$engine" kindest "$kindest"
        return
      fi
    done
    if [ "$want" = kindest ]; then die "$kindest is neither present nor to be pulled (engines that answer: ${engines[*]:-none})"; fi
    say "no engine has $kindest, and it cannot be pulled: building the node from packages"
  fi
  "$HERE/host.sh"
  use podman built "$BUILT_IMAGE"
}

have_built_image() {
  command -v podman > /dev/null || return 1
  podman_settings
  podman image exists "$BUILT_IMAGE" 2> /dev/null
}

use() { # ENGINE SOURCE IMAGE
  ENGINE=$1 SOURCE=$2 IMAGE=$3
  engine_settings
  INPUTS=$(inputs)
  if [ "$SOURCE" = built ]; then
    "$HERE/tools.sh" kind kubectl helm
    if ! podman image exists "$IMAGE"; then
      "$HERE/tools.sh" all
      "$HERE/build-node.sh"
    fi
    touch "$TOOLS"
  else
    tools_of_the_machine
  fi
}

# With kindest/node the machine's own programs do, if they are recent enough.
tools_of_the_machine() {
  local name missing=() minor
  for name in kind kubectl helm; do command -v "$name" > /dev/null || missing+=("$name"); done
  if command -v kubectl > /dev/null && [ ! -x "$BIN/kubectl" ]; then
    minor=$(kubectl version --client -o json 2> /dev/null | sed -n 's/.*"gitVersion": "v1\.\([0-9]*\).*/\1/p' | head -n 1)
    if [ -z "$minor" ] || [ "$minor" -lt $(($(cut -d. -f2 <<< "$KUBE_VERSION") - 1)) ]; then missing+=(kubectl); fi
  fi
  if [ ${#missing[@]} = 0 ]; then return 0; fi
  if ! command -v go > /dev/null; then
    die "missing on PATH, or too old for Kubernetes $KUBE_VERSION: ${missing[*]}" \
      "install them (kind $KIND_VERSION, kubectl $KUBE_VERSION, helm $HELM_VERSION), or Go, with which they are built here"
  fi
  "$HERE/tools.sh" "${missing[@]}"
}

create() {
  rm -rf "$OUT/logs-$CLUSTER"
  # kind resolves the relative paths of its configuration against where it runs
  if ! KUBECONFIG=$ADMIN step "create cluster $CLUSTER" env -C "$ROOT" timeout 600 \
    kind create cluster --name "$CLUSTER" --config kind-config.yaml --image "$IMAGE" --wait 180s --retain; then
    timeout 60 kind export logs --name "$CLUSTER" "$OUT/logs-$CLUSTER" > /dev/null 2>&1 || true
    return 1
  fi
  # kind only warns when the node is not Ready in time
  step "node Ready" kubectl --kubeconfig "$ADMIN" wait --for=condition=Ready nodes --all --timeout=60s || return 1
  step "coredns Available" kubectl --kubeconfig "$ADMIN" -n kube-system wait --for=condition=Available deploy/coredns --timeout=180s || return 1
  # the record comes last: without one, a cluster is a left-over
  printf '%s\n' "$ENGINE" "$SOURCE" "$IMAGE" "$INPUTS" > "$RECORD.tmp"
  mv "$RECORD.tmp" "$RECORD"
}

publish() {
  mkdir -p "$OUT"
  install -m 600 "$ADMIN" "$KUBECONFIG.tmp"
  mv "$KUBECONFIG.tmp" "$KUBECONFIG"
}

# Whatever there is of this cluster, dead or alive. kind is asked first; what it
# cannot remove the engine has to.
destroy() {
  local left
  rm -f "$RECORD"
  if command -v "$ENGINE" > /dev/null && [ -n "$(nodes)" ]; then
    # a node has nothing to save; asked to stop, it takes ten seconds to be killed
    # shellcheck disable=SC2046 # one or more ids
    timeout 30 "$ENGINE" kill $(nodes) > /dev/null 2>&1 || true
    if command -v kind > /dev/null; then
      KUBECONFIG=$ADMIN step "delete cluster $CLUSTER" timeout 60 kind delete cluster --name "$CLUSTER" || true
    fi
    left=$(nodes)
    if [ -n "$left" ]; then
      # shellcheck disable=SC2086 # one or more ids
      step "remove what is left of $CLUSTER" timeout 60 "$ENGINE" rm --force --volumes $left || true
    fi
    if [ -n "$(nodes)" ]; then die "$ENGINE cannot remove the node of $CLUSTER" "try: $ENGINE rm --force $NODE; or restart the machine"; fi
  fi
  rm -f "$ADMIN" "$ADMIN.lock"
}

nodes() { timeout 30 "$ENGINE" ps --all --quiet --filter "label=io.x-k8s.kind.cluster=$CLUSTER"; }

main "$@"
