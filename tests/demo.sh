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

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
if [ ! -t 1 ]; then say() { printf '\n# %s\n' "$*"; }; fi
# run COMMAND... : shows a command, runs it and shows what it said; its exit status is `rc`
run() {
  printf '$'
  printf ' %s' "${@@Q}" | sed "s/'\([][A-Za-z0-9_=:,.\/@-]*\)'/\1/g"
  printf '\n'
  rc=0
  "$@" 2>&1 || rc=$?
}
# passes/refused COMMAND... : run, and the demo ends where the guard did not do what the story says
passes() { run "$@"; [ "$rc" = 0 ] || { echo "demo: this should have passed" >&2; exit 1; }; }
# settles : the rollout, of which kubectl's last word is shown
settles() {
  printf '$ kubectl -n demo rollout status deployment/web\n'
  kubectl -n demo rollout status deployment/web --timeout=120s | tail -n 1
}
refused() { run "$@"; [ "$rc" != 0 ] || { echo "demo: this should have been refused" >&2; exit 1; }; }

say "Install the guard"
passes helm upgrade --install rollout-guard charts/rollout-guard --namespace rollout-guard --create-namespace \
  --set "image.repository=${image%:*}" --set "image.tag=${image##*:}" --wait --timeout 3m --hide-notes
kubectl wait rolloutpolicy/default --for=condition=Ready --timeout=60s > /dev/null
kubectl wait rolloutpolicy/default --for=condition=FallbackReady --timeout=60s > /dev/null
run kubectl get rolloutpolicies

kubectl delete namespace demo --ignore-not-found > /dev/null
kubectl create namespace demo > /dev/null
# A policy for the demo alone, so that a push queues for ten seconds and not for a minute.
kubectl label namespace demo demo=yes > /dev/null
kubectl apply -f - > /dev/null << 'Y'
apiVersion: rollout-guard.io/v1alpha1
kind: RolloutPolicy
metadata: {name: demo}
spec:
  priority: 10
  namespaceSelector: {matchLabels: {demo: "yes"}}
  admission: {maxWaitSeconds: 1}
Y
kubectl wait rolloutpolicy/demo --for=condition=Ready --timeout=60s > /dev/null
kubectl -n demo apply -f - > /dev/null << 'Y'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  progressDeadlineSeconds: 10
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: localhost/sample:v1
        imagePullPolicy: IfNotPresent
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
Y
kubectl -n demo rollout status deployment/web --timeout=120s > /dev/null

say "A healthy Deployment: a push goes through"
passes kubectl -n demo set image deployment/web web=localhost/sample:v2
settles

say "A quota stops new ReplicaSets: the next generation cannot be observed"
passes kubectl -n demo create quota no-replicasets --hard=count/replicasets.apps=1
passes kubectl -n demo set image deployment/web web=localhost/sample:v3
kubectl -n demo wait deployment/web --for=jsonpath='{.status.conditions[?(@.type=="Progressing")].reason}'=ReplicaSetCreateError --timeout=60s > /dev/null
run kubectl -n demo get deployment web -o custom-columns=NAME:.metadata.name,GENERATION:.metadata.generation,OBSERVED:.status.observedGeneration

say "The next push queues, then is refused in words that a pipeline's log can show"
refused kubectl -n demo set image deployment/web web=localhost/sample:v1

say "A dry run, as GitOps asks first, is answered at once"
refused kubectl -n demo set image deployment/web web=localhost/sample:v1 --dry-run=server

say "What starts no rollout is never refused"
passes kubectl -n demo scale deployment/web --replicas=3
passes kubectl -n demo annotate deployment/web owner=shop-team

say "The quota is lifted while a push queues: it goes through by itself"
(sleep 3 && kubectl -n demo delete quota no-replicasets > /dev/null && kubectl -n demo annotate deployment/web quota=lifted > /dev/null) &
passes kubectl -n demo set image deployment/web web=localhost/sample:v1
wait
settles

say "A bad image is pushed; Kubernetes gives up at its deadline and leaves it there"
passes kubectl -n demo set image deployment/web web=localhost/sample:no-such-tag
kubectl -n demo wait deployment/web --for=jsonpath='{.status.conditions[?(@.type=="Progressing")].reason}'=ProgressDeadlineExceeded --timeout=120s > /dev/null
refused kubectl -n demo set image deployment/web web=localhost/sample:v3

say "Somebody who may override it does, once, with a reason that is audited"
passes kubectl -n demo patch deployment web --type=strategic -p '{"metadata":{"annotations":{"rollout-guard.io/override":"INC-42: the tag is fixed"}},"spec":{"template":{"spec":{"containers":[{"name":"web","image":"localhost/sample:v3"}]}}}}'
settles

say "What the guard wrote about it"
kubectl -n rollout-guard logs -l app.kubernetes.io/name=rollout-guard --tail=200 | grep -E '"verdict":"(wait|deny|override)"' | tail -n 4

cat << T

The cluster stays up. To look on:
  eval "\$(tests/kind/cluster.sh env)"
  kubectl get rolloutpolicies
  kubectl -n rollout-guard logs -l app.kubernetes.io/name=rollout-guard -f
To remove it:
  make cluster-down
T
