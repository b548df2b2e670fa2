#!/bin/bash
# Build programs from Go modules, without cgo, into the cache:
#
#     tools.sh NAME...     # kind kubectl helm kubelet etcd ...; `all` for all
#     tools.sh --path      # print `export PATH=...` with the directory they are in
#
# What is there already is left alone: a program gets its name only once it is
# complete, and the directory has the hash of all inputs in its name.
. "$(dirname "$0")/lib.sh"

KUBERNETES=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubeadm kubectl)
ALL=(kind "${KUBERNETES[@]}" etcd helm coredns pause)

# shellcheck disable=SC2016 # to be expanded by the reader
if [ "${1:-}" = --path ]; then printf 'export PATH=%q:"$PATH"\n' "$BIN"; exit; fi
if [ "${1:-}" = all ]; then set -- "${ALL[@]}"; fi
want=()
for name in "$@"; do [ -x "$BIN/$name" ] || want+=("$name"); done
if [ ${#want[@]} = 0 ]; then exit 0; fi

if ! command -v go > /dev/null; then
  die "cannot build ${want[*]}: Go is missing" "install Go $(awk '$1 == "go" { print $2 }' "$HERE/go/kube/go.mod") or later and put it on PATH"
fi

locked "$0" "$@"

# versions.env and the go.mod files have to tell the same story.
agrees() { # MODULE-DIR MODULE VERSION
  grep -qE "^(require)?[[:space:]]*$2 $3\$" "$HERE/go/$1/go.mod" ||
    die "versions.env wants $2 $3, but tests/kind/go/$1/go.mod does not"
}
agrees kube k8s.io/kubernetes "$KUBE_VERSION"
agrees kube go.etcd.io/etcd/server/v3 "v${ETCD_TAG%-*}"
agrees kube helm.sh/helm/v4 "$HELM_VERSION"
agrees coredns 'require github.com/coredns/coredns' "$COREDNS_TAG"
agrees kind 'require sigs.k8s.io/kind' "$KIND_VERSION"

version=k8s.io/component-base/version
stamp="-X $version.gitVersion=$KUBE_VERSION -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d. -f2 <<< "$KUBE_VERSION") -X $version.gitTreeState=clean"

build() { # NAME MODULE-DIR PACKAGE [LDFLAGS]
  step "build $1" env -C "$HERE/go/$2" CGO_ENABLED=0 GOWORK=off GOFLAGS= \
    nice -n 5 go build -buildvcs=false -trimpath -ldflags "-s -w ${4:-}" -o "$TOOLS/tmp/$1" "$3"
  mv "$TOOLS/tmp/$1" "$BIN/$1"
}

mkdir -p "$BIN" "$TOOLS/tmp"
for name in "${want[@]}"; do
  case $name in
    kube-* | kubelet | kubeadm | kubectl) build "$name" kube "k8s.io/kubernetes/cmd/$name" "$stamp" ;;
    etcd) build etcd kube go.etcd.io/etcd/server/v3 ;;
    helm) build helm kube helm.sh/helm/v4/cmd/helm ;;
    kind) build kind kind sigs.k8s.io/kind ;;
    coredns | pause) build "$name" "$name" . ;;
    *) die "tools.sh does not know how to build $name" ;;
  esac
done
rm -rf "$TOOLS/tmp"
touch "$TOOLS"
keep 2 "$STATE/tools"
