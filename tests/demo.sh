#!/bin/bash
# The demo: the guard at work on a real kind cluster, told by real kubectl output.
#
# Everything happens in the namespace `demo`, which is made anew each time. The cluster stays up.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=tests/kind

"$kind/cluster.sh" up rollout-guard
eval "$("$kind/cluster.sh" env rollout-guard)"
image=$(IMAGE_TAG=content "$kind/image.sh" all rollout-guard | tail -n 1)
chart=$PWD/charts/rollout-guard
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The commands as a plugin of kubectl's: the very binary that is in the image.
mkdir "$work/bin"
ln -s "$PWD/target/kind/rollout-guard" "$work/bin/kubectl-rollout_guard"
PATH=$work/bin:$PATH

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
if [ ! -t 1 ]; then say() { printf '\n# %s\n' "$*"; }; fi
# run COMMAND... : shows a command, runs it and shows what it said; its exit status is `rc`, its words are `said`
run() {
  printf '$'
  printf ' %s' "${@@Q}" | sed "s/'\([][A-Za-z0-9_=:,.\/@-]*\)'/\1/g"
  printf '\n'
  rc=0
  said=$("$@" 2>&1) || rc=$?
  printf '%s\n' "$said"
}
# wrong WHAT : the demo ends where the guard did not do what the story says
wrong() {
  echo "demo: $1" >&2
  exit 1
}
# passes COMMAND... : run
passes() {
  run "$@"
  [ "$rc" = 0 ] || wrong "this should have passed"
}
# refused ID COMMAND... : run
refused() {
  local id=$1
  shift
  run "$@"
  if [ "$rc" = 0 ] || [[ $said != *"$id "* ]]; then wrong "this should have been refused by $id"; fi
}
# settles DEPLOYMENT : the rollout, of which kubectl's last word is shown
settles() {
  printf '$ kubectl -n demo rollout status deployment/%s\n' "$1"
  kubectl -n demo rollout status "deployment/$1" --timeout=120s | tail -n 1
}
# until_record DEPLOYMENT JSONPATH VALUE : what the guard knows of it
until_record() {
  kubectl -n demo wait --for=create "rolloutrecord/deployment-$1" --timeout=60s > /dev/null
  kubectl -n demo wait "rolloutrecord/deployment-$1" --for="jsonpath={.status.$2}=$3" --timeout=60s > /dev/null ||
    wrong "the record of $1 should say $3"
}
# events_of DEPLOYMENT : those that the guard wrote
events_of() {
  run kubectl -n demo get events --field-selector "involvedObject.kind=Deployment,involvedObject.name=$1,source=rollout-guard" \
    --sort-by=.metadata.creationTimestamp -o custom-columns=REASON:.reason,MESSAGE:.message
}
# How long a revision must be complete to count as good, in seconds (goodAfter).
good_after=2
# of DEPLOYMENT JSONPATH : a field of it
of() { kubectl -n demo get deployment "$1" -o "jsonpath={$2}"; }
# become_good DEPLOYMENT : until its complete revision counts as good
become_good() {
  if [ -n "$(kubectl -n demo get rolloutrecord "deployment-$1" --ignore-not-found -o name)" ]; then
    # The record is of the revision of now, and that one has settled.
    until_record "$1" 'revisions[0].revision' "$(of "$1" '.metadata.annotations.deployment\.kubernetes\.io/revision')"
    kubectl -n demo wait "rolloutrecord/deployment-$1" --for='jsonpath={.status.settledAt}' --timeout=60s > /dev/null ||
      wrong "the revision of $1 should have become good"
    return
  fi
  # There is no record of what has only ever been complete: the guard goes by the time that Kubernetes gives.
  local since
  since=$(of "$1" '.status.conditions[?(@.type=="Progressing")].lastUpdateTime')
  since=$(date -d "$since" +%s)
  while [ "$(date +%s)" -le $((since + good_after)) ]; do sleep 0.2; done
}
# waits : how many pushes the guard has told to wait
waits() {
  kubectl -n rollout-guard logs -l app.kubernetes.io/name=rollout-guard --tail=-1 | grep -c '"verdict":"wait"' || true
}
# lift_quota WAITS : when one more push than these waits
lift_quota() {
  local tries=0
  until [ "$(waits)" -gt "$1" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || wrong "the push should have been told to wait"
    sleep 0.2
  done
  kubectl -n demo delete quota no-replicasets > /dev/null
  kubectl -n demo annotate deployment/web quota=lifted > /dev/null
}

say "Install the guard"
# Helm never updates CRDs, and the cluster may have those of an earlier demo.
kubectl apply --server-side --force-conflicts -f "$chart/crds" > /dev/null
kubectl wait --for=condition=Established -f "$chart/crds" --timeout=60s > /dev/null
passes helm upgrade --install rollout-guard charts/rollout-guard --namespace rollout-guard --create-namespace \
  --set "image.repository=${image%:*}" --set "image.tag=${image##*:}" --wait --timeout 3m --hide-notes
kubectl wait rolloutpolicy/default --for=condition=Ready --timeout=60s > /dev/null
kubectl wait rolloutpolicy/default --for=condition=FallbackReady --timeout=60s > /dev/null
kubectl -n rollout-guard wait lease/rollout-guard --for='jsonpath={.spec.holderIdentity}' --timeout=60s > /dev/null
cd "$work"
run kubectl get rolloutpolicies

kubectl delete namespace demo --ignore-not-found > /dev/null
kubectl create namespace demo > /dev/null
# A policy for the demo alone, with times so short that a push queues for ten seconds and not for a minute, and that
# a failure is believed after five seconds.
kubectl label namespace demo demo=yes > /dev/null
kubectl apply -f - > /dev/null << Y
apiVersion: rollout-guard.io/v1alpha1
kind: RolloutPolicy
metadata: {name: demo}
spec:
  priority: 10
  namespaceSelector: {matchLabels: {demo: "yes"}}
  admission: {maxWaitSeconds: 1}
  watch: {earlyFailureAfter: 5s, goodAfter: ${good_after}s}
  rollback: {mode: Manual}
Y
kubectl wait rolloutpolicy/demo --for=condition=Ready --timeout=60s > /dev/null
# manifest NAME IMAGE
manifest() {
  cat << Y
apiVersion: apps/v1
kind: Deployment
metadata: {name: $1, namespace: demo}
spec:
  replicas: 2
  progressDeadlineSeconds: 10
  selector: {matchLabels: {app: $1}}
  template:
    metadata: {labels: {app: $1}}
    spec:
      containers:
      - name: $1
        image: $2
        imagePullPolicy: IfNotPresent
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
Y
}
# `web` is driven by hand, `api` by GitOps, from these files.
manifest web localhost/sample:v1 | kubectl apply -f - > /dev/null
manifest api localhost/sample:v1 > api-v1.yaml
manifest api localhost:5000/missing/app:v9 > api-v9.yaml
manifest api localhost/sample:v2 > api-v2.yaml
kubectl apply --server-side --field-manager=gitops -f api-v1.yaml > /dev/null
# A registry that answers, and has nothing.
kubectl -n demo apply -f - > /dev/null << 'Y'
apiVersion: v1
kind: Pod
metadata: {name: registry}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
  - name: registry
    image: localhost/sample:v1
    imagePullPolicy: IfNotPresent
    args: [registry]
    readinessProbe: {httpGet: {path: /v2/, port: 5000}, periodSeconds: 1}
Y
kubectl -n demo rollout status deployment/web --timeout=120s > /dev/null

say "A healthy Deployment: a push goes through"
passes kubectl -n demo set image deployment/web web=localhost/sample:v2
settles web
become_good web

say "A quota stops new ReplicaSets: the next generation cannot be observed"
passes kubectl -n demo create quota no-replicasets --hard=count/replicasets.apps=1
passes kubectl -n demo set image deployment/web web=localhost/sample:v3
kubectl -n demo wait deployment/web --for=jsonpath='{.status.conditions[?(@.type=="Progressing")].reason}'=ReplicaSetCreateError --timeout=60s > /dev/null
run kubectl -n demo get deployment web -o custom-columns=NAME:.metadata.name,GENERATION:.metadata.generation,OBSERVED:.status.observedGeneration

say "The next push queues, then is refused in words that a pipeline's log can show"
refused RG001 kubectl -n demo set env deployment/web LOG=debug

say "A dry run, as GitOps asks first, is answered at once"
refused RG001 kubectl -n demo set env deployment/web LOG=debug --dry-run=server

say "The guard knows why, and under rollback.mode Manual says what it would do"
until_record web 'conditions[?(@.type=="RolledBack")].reason' Manual
run kubectl -n demo get rolloutrecord deployment-web
run kubectl -n demo get rolloutrecord deployment-web -o 'jsonpath={.status.conditions[?(@.type=="RolledBack")].message}'

say "What starts no rollout is never refused"
passes kubectl -n demo scale deployment/web --replicas=3
passes kubectl -n demo annotate deployment/web owner=shop-team

say "The quota is lifted while a push queues: it goes through by itself"
lift_quota "$(waits)" &
lifting=$!
passes kubectl -n demo set env deployment/web LOG=debug
wait "$lifting"
settles web

say "From here on it rolls back by itself"
passes kubectl patch rolloutpolicy demo --type=merge -p '{"spec":{"rollback":{"mode":"Automatic"}}}'
kubectl wait rolloutpolicy/demo --for='jsonpath={.status.observedGeneration}=2' --timeout=60s > /dev/null
become_good web

say "A registry is down: another revision would not help, so the guard holds, and the next push is refused"
passes kubectl -n demo set image deployment/web web=localhost/sample:no-such-tag
kubectl -n demo wait deployment/web --for=jsonpath='{.status.conditions[?(@.type=="Progressing")].reason}'=ProgressDeadlineExceeded --timeout=120s > /dev/null
until_record web 'conditions[?(@.type=="Stalled")].reason' Held
run kubectl -n demo get rolloutrecord deployment-web
refused RG002 kubectl -n demo set image deployment/web web=localhost/sample:v1

say "Somebody who may override it does, once, with a reason that is audited"
passes kubectl -n demo patch deployment web --type=strategic -p '{"metadata":{"annotations":{"rollout-guard.io/override":"INC-42: the tag is fixed"}},"spec":{"template":{"spec":{"containers":[{"name":"web","image":"localhost/sample:v1"}]}}}}'
settles web

say "GitOps pushes an image that does not exist"
kubectl -n demo wait pod/registry --for=condition=Ready --timeout=60s > /dev/null
become_good api
pushed=$SECONDS
passes kubectl apply --server-side --field-manager=gitops -f api-v9.yaml

say "The pipeline waits for it, and is told"
run kubectl rollout-guard wait api -n demo --timeout 60s
[ "$rc" = 3 ] || wrong "wait should have said that it was rolled back (exit status 3, not $rc)"
echo "(exit status $rc, $((SECONDS - pushed)) s after the push)"

say "The guard has named the cause, rolls back, and verifies"
passes kubectl -n demo wait rolloutrecord/deployment-api --for=condition=RolledBack --timeout=60s
until_record api rollback.outcome Succeeded
passes kubectl -n demo wait rolloutrecord/deployment-api --for=condition=Ready --timeout=60s
echo "(safe $((SECONDS - pushed)) s after the push)"
run kubectl -n demo get deployment api -o 'custom-columns=NAME:.metadata.name,GENERATION:.metadata.generation,OBSERVED:.status.observedGeneration,AVAILABLE:.status.availableReplicas,IMAGE:.spec.template.spec.containers[0].image'
events_of api

say "Whoever waits for that push is told"
run kubectl -n demo get deployment api -o 'jsonpath={.status.conditions[?(@.type=="Stalled")].message}'

say "GitOps pushes it again, as it always does"
refused RG004 kubectl apply --server-side --field-manager=gitops -f api-v9.yaml

say "The fix goes through, without a conflict and without an override"
passes kubectl apply --server-side --field-manager=gitops -f api-v2.yaml
settles api
run kubectl -n demo get rolloutrecords

say "The runbook as commands: what is there"
passes kubectl rollout-guard status -n demo
passes kubectl rollout-guard status api -n demo

say "Status, generations, configuration, events, the cluster's health: one page"
passes kubectl rollout-guard diagnose api -n demo

say "Which revisions were good, and how the bad one differs from what runs now"
passes kubectl rollout-guard history api -n demo
passes kubectl rollout-guard history api -n demo --diff "$(kubectl -n demo get rolloutrecord deployment-api -o 'jsonpath={.status.rollback.fromRevision}')"

say "What the guard wrote about it"
kubectl -n rollout-guard logs -l app.kubernetes.io/name=rollout-guard --tail=200 | grep -E '"verdict":"(wait|deny|override)"' | tail -n 4

cat << T

The cluster stays up. To look on:
  eval "\$(tests/kind/cluster.sh env)"
  kubectl get rolloutpolicies
  kubectl get rolloutrecords -A
  kubectl -n rollout-guard logs -l app.kubernetes.io/name=rollout-guard -f
To remove it:
  make cluster-down
T
