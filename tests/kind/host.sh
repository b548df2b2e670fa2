#!/bin/bash
# What the machine itself needs so that a node image can be built and run:
# podman and a few tools, from Debian. Quick when all is there.
. "$(dirname "$0")/lib.sh"

missing=()
if [ "$(id -u)" != 0 ]; then missing+=("root: run this as root (without root, start Docker or podman and have kindest/node:$KUBE_VERSION present)"); fi
if ! command -v apt-get > /dev/null || ! grep -qE '^ID(_LIKE)?=.*debian' /etc/os-release 2> /dev/null; then
  missing+=("Debian: packages come from apt-get (elsewhere, start Docker or podman and have kindest/node:$KUBE_VERSION present)")
fi
if ! command -v go > /dev/null && [ ! -x "$BIN/kubelet" ]; then
  missing+=("Go $(awk '$1 == "go" { print $2 }' "$HERE/go/kube/go.mod") or later, on PATH: Kubernetes, etcd, kind, helm are built from Go modules")
fi
if [ ${#missing[@]} -gt 0 ]; then
  die "no container engine with kindest/node:$KUBE_VERSION is at hand, and the node cannot be built here. Missing:" "${missing[@]}"
fi

packages=()
need() { # COMMAND-OR-FILE PACKAGE
  command -v "$1" > /dev/null || [ -e "$1" ] || packages+=("$2")
}
need podman podman
need runc runc
need conmon conmon
need /usr/lib/podman/netavark netavark
need /usr/lib/podman/aardvark-dns aardvark-dns
need iptables iptables
need ip iproute2
need mmdebstrap mmdebstrap
need jq jq
need python3 python3
if [ ${#packages[@]} -gt 0 ]; then
  # RUNLEVEL=1 keeps maintainer scripts from starting services.
  export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive
  apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
  step "package lists" "${apt[@]}" update
  step "packages ${packages[*]}" "${apt[@]}" install -y --no-install-recommends "${packages[@]}"
fi

# kind binds /lib/modules into the node; a kernel without modules has none.
mkdir -p /lib/modules
