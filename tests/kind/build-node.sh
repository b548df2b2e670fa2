#!/bin/bash
# The node image, in place of kindest/node: a Debian base, the files of the
# kind module, our Kubernetes programs, and the system images preloaded. It ends
# up in podman's storage as $BUILT_IMAGE.
#
# The base is kept (it costs a mirror and most of the time); the image itself
# is not kept twice: when podman's storage loses it, it is put together again
# from the cached base and programs, which needs no network.
. "$(dirname "$0")/lib.sh"
podman_settings

BASE=$STATE/base-$(base_key)
WORK=$STATE/work
root=$WORK/root

# Where this machine's own apt gets its packages from.
mirror() {
  local from
  from=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' "Codename: $DEBIAN_SUITE" 'Component: main' | head -n 1)
  # another release of Debian: the same mirror has ours too
  [ -n "$from" ] || from=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Origin: Debian' 'Component: main' | head -n 1)
  [ -n "$from" ] || die "apt knows no Debian mirror" "run apt-get update and look at its sources"
  echo "$from"
}

base() {
  mmdebstrap --quiet --variant=minbase --mode=root \
    --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(tr -s ' \n' ',' < "$HERE/node/packages" | sed 's/,$//')" \
    "$DEBIAN_SUITE" "$WORK/base" "$(mirror)"
  rm -rf "$WORK"/base/{tmp,run,var/cache/apt,var/lib/apt/lists}/*
  mv "$WORK/base" "$BASE"
}

assemble() {
  cp -a "$BASE" "$root"
  # kind's own files - entrypoint, units, containerd and sysctl configuration -
  # are taken from its module, so that they are of the version that we build
  local files
  files=$(cd "$HERE/go/kind" && GOWORK=off go mod download sigs.k8s.io/kind && GOWORK=off go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files
  cp -r --no-preserve=mode,ownership "$files/etc/." "$root/etc/"
  cp -r --no-preserve=mode,ownership "$files/kind" "$root/"
  install -m 755 "$files/usr/local/bin/entrypoint" "$root/usr/local/bin/"
  chmod 755 "$root/kind" "$root"/kind/bin "$root"/kind/bin/*
  # the same clean-up of units as the Dockerfile of kind's base image
  local u=$root/lib/systemd/system
  rm -f "$u/sysinit.target.wants/systemd-tmpfiles-setup.service" \
    "$u"/multi-user.target.wants/* "$root"/etc/systemd/system/*.wants/* \
    "$u"/local-fs.target.wants/* "$u"/sockets.target.wants/*udev* \
    "$u"/sockets.target.wants/*initctl* "$u"/basic.target.wants/*
  echo "ReadKMsg=no" >> "$root/etc/systemd/journald.conf"
  # Debian's containerd under the names that kind uses
  local b
  for b in containerd ctr containerd-shim-runc-v2; do ln -sf "/usr/bin/$b" "$root/usr/local/bin/$b"; done
  mkdir -p "$root/opt/cni" "$root/etc/kubernetes/manifests" "$root/kind/manifests"
  ln -s /usr/lib/cni "$root/opt/cni/bin"
  chroot "$root" ctr oci spec |
    jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
      > "$root/etc/containerd/cri-base.json"
  # where CAP_SYS_RESOURCE is missing nothing may lower an OOM score
  sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' "$root/etc/containerd/config.toml"
  grep -q 'restrict_oom_score_adj = true' "$root/etc/containerd/config.toml"
  install -m 755 "$BIN"/{kubelet,kubeadm,kubectl} "$root/usr/bin/"
  echo -n "$KUBE_VERSION" > "$root/kind/version"
  # pod network and storage, in place of kindnetd and of the local-path provisioner
  install -m 755 "$HERE/node/pod-network.sh" "$root/kind/bin/"
  install -m 644 "$HERE/node/pod-network.service" "$root/etc/systemd/system/"
  install -m 644 "$HERE"/node/default-*.yaml "$root/kind/manifests/"
  chroot "$root" systemctl --quiet enable kubelet containerd undo-mount-hacks pod-network
  chroot "$root" systemctl --quiet mask systemd-binfmt.service
}

# iptables, nft and conntrack with their libraries: what kube-proxy's image needs
# besides kube-proxy.
proxy_tree() {
  local out=$WORK/proxytree l n p s t
  mkdir -p "$out"/{etc,run,tmp,var}
  for l in bin sbin lib lib64; do
    if [ -L "$root/$l" ]; then mkdir -p "$out/$(readlink "$root/$l")"; ln -s "$(readlink "$root/$l")" "$out/$l"; fi
  done
  local files=(/usr/sbin/{iptables,ip6tables}-nft{,-save,-restore} /usr/sbin/{nft,conntrack})
  mapfile -t -O ${#files[@]} files < <(cd "$root" && ls -d usr/lib/*/xtables/*.so | sed 's#^#/#')
  for p in "${files[@]}" $(chroot "$root" ldd "${files[@]}" | grep -o '/[^ :]* (' | tr -d '( ' | sort -u); do
    while :; do # each link and, in the end, the file
      mkdir -p "$out$(dirname "$p")"
      cp -a --update "$root$p" "$out$(dirname "$p")/"
      [ -L "$root$p" ] || break
      t=$(readlink "$root$p")
      case $t in /*) p=$t ;; *) p=$(dirname "$p")/$t ;; esac
    done
  done
  for n in iptables ip6tables; do for s in "" -save -restore; do ln -s "$n-nft$s" "$out/usr/sbin/$n$s"; done; done
  chroot "$out" /usr/sbin/iptables -V
  chroot "$out" /usr/sbin/nft --version
}

# One archive with all images of the control plane. Their full names are asked of
# kubeadm, and that of pause of kind's containerd configuration; the tags
# have to be those of versions.env, which are the versions that were built.
system_images() {
  { "$BIN/kubeadm" config images list --kubernetes-version "$KUBE_VERSION" | grep -v '/pause:'
    sed -n 's/^ *sandbox_image = "\(.*\)"/\1/p' "$root/etc/containerd/config.toml"
  } > "$WORK/refs"
  python3 - "$BIN" "$WORK" "$KUBE_VERSION" "$ETCD_TAG" "$COREDNS_TAG" "$PAUSE_TAG" > "$WORK/images.json" << 'PY'
import json, sys
programs, work, kube, etcd, dns, pause = sys.argv[1:]
want = {"etcd": etcd, "coredns": dns, "pause": pause}
images = []
for ref in open(f"{work}/refs").read().split():
    name, tag = ref.rsplit("/", 1)[1].rsplit(":", 1)
    if tag != want.get(name, kube):
        sys.exit(f"{ref} is wanted, but versions.env has {want.get(name, kube)}")
    path = f"/{name}" if name in ("coredns", "pause") else f"/usr/local/bin/{name}"
    image = dict(ref=ref, files={path: f"{programs}/{name}"}, entrypoint=[path])
    if name == "kube-proxy":
        image["tree"] = f"{work}/proxytree"
    images.append(image)
if len(images) != 7:
    sys.exit(f"expected 7 images, got {len(images)}")
json.dump(images, sys.stdout, indent=1)
PY
  python3 "$HERE/mkimage.py" "$WORK/images.tar" "$WORK/images.json"
}

# Into the node's containerd: the content only, as kind does; it is unpacked on
# first use.
preload() {
  cat > "$root/preload" << 'S'
set -eu
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
containerd > /tmp/containerd.log 2>&1 &
pid=$!
for i in $(seq 50); do ctr version > /dev/null 2>&1 && break; sleep 0.2; done
ctr --namespace=k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests - < /preload.tar > /dev/null
ctr --namespace=k8s.io images list -q | grep -v sha256
kill $pid
wait $pid || true
S
  touch "$root/preload.tar"
  unshare --mount --pid --fork --kill-child \
    bash -c "mount --bind '$WORK/images.tar' '$root/preload.tar' && exec chroot '$root' /bin/sh /preload"
  rm -f "$root"/preload{,.tar} "$WORK/images.tar"
}

import() {
  rm -rf "$root"/tmp/* "$root"/run/*
  : > "$root/etc/machine-id"
  tar -C "$root" --numeric-owner --exclude='./dev/*' -c . | podman import --quiet \
    --change 'ENV container=podman' --change 'STOPSIGNAL SIGRTMIN+3' \
    --change 'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]' - "$BUILT_IMAGE"
}

# Each stage is a process of its own (see `step`): build-node.sh STAGE
if [ $# -gt 0 ]; then "$1"; exit; fi

discard "$WORK" # of a run that was killed
trap 'discard "$WORK"' EXIT
mkdir -p "$WORK"
[ -d "$BASE" ] || step "node: Debian base" "$0" base
touch "$BASE"
step "node: put together" "$0" assemble
step "node: tree of kube-proxy" "$0" proxy_tree
step "node: system images" "$0" system_images
step "node: preload them" "$0" preload
step "node: into podman" "$0" import
keep 2 "$STATE/base"

# Of older node images keep one: two branches, say, that take turns.
podman image ls --sort created --format '{{.Repository}}:{{.Tag}}' | grep "^${BUILT_IMAGE%:*}:" | tail -n +3 |
  while read -r old; do podman image rm "$old" > /dev/null 2>&1 || true; done
podman image prune --force > /dev/null
