#!/bin/bash
# The images that the tests run, as archives, without an engine, a registry or a
# base image:
#
#     image.sh guard  [CLUSTER]    target/kind/rollout-guard.tar
#     image.sh sample [CLUSTER]    target/kind/sample.tar: localhost/sample:v1, :v2, :v3
#     image.sh all    [CLUSTER]    both
#
# With CLUSTER they are loaded into it; with `-` into whichever of ours is up.
# The guard's reference is localhost/rollout-guard:$IMAGE_TAG (dev); with
# IMAGE_TAG=content the tag is a hash of the binary. The last line on stdout is
# the guard's reference.
. "$(dirname "$0")/lib.sh"
what=${1:-all} cluster=${2:-}
mkdir -p "$OUT"

guard() {
  local target flags binary version
  target=$(rustc -vV | sed -n 's/^host: //p')
  flags=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<< "$target")_RUSTFLAGS
  export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$("$HERE/cargo-target.sh")}
  # The flag goes to the target alone (hence --target): build scripts and
  # procedural macros are built for the host and stay dynamic. glibc and not
  # musl, so that the toolchain at hand is enough; it resolves names by its
  # built-in `files` and `dns`.
  step "cargo build --release, static" env -C "$ROOT" -u RUSTFLAGS "$flags=-C target-feature=+crt-static" \
    cargo build --release --locked --bin rollout-guard --target "$target"
  # our own copy: another clone may share the directory
  binary=$OUT/rollout-guard
  install -m 755 "$CARGO_TARGET_DIR/$target/release/rollout-guard" "$binary"
  # ldd names the loader's absence in one of two ways, by kind of executable
  LC_ALL=C ldd "$binary" 2>&1 | grep -qE 'statically linked|not a dynamic executable' ||
    die "$binary is not static: it cannot run in an empty image" "see: ldd $binary"

  IMAGE_TAG=${IMAGE_TAG:-dev}
  if [ "$IMAGE_TAG" = content ]; then IMAGE_TAG=sha-$(sha256sum "$binary" | cut -c1-12); fi
  reference=localhost/rollout-guard:$IMAGE_TAG
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
  cat > "$OUT/rollout-guard.json" << J
[{"ref": "$reference", "files": {"/rollout-guard": "$binary"},
  "entrypoint": ["/rollout-guard"], "user": "65532:65532",
  "labels": {"org.opencontainers.image.title": "rollout-guard",
             "org.opencontainers.image.version": "$version",
             "org.opencontainers.image.revision": "$(git -C "$ROOT" rev-parse --verify --quiet HEAD || true)",
             "org.opencontainers.image.licenses": "Apache-2.0"}}]
J
  step "image $reference" python3 "$HERE/mkimage.py" "$OUT/rollout-guard.tar" "$OUT/rollout-guard.json"
  archives+=("$OUT/rollout-guard.tar")
}

# One program, three images that differ by an environment variable. Built once
# for its inputs, then copied.
sample() {
  local cached version spec work
  cached=$STATE/sample-$(cd "$HERE" && hash_of "$(uname -m)" -- image.sh mkimage.py go/sample/*)
  if [ ! -f "$cached/sample.tar" ]; then
    command -v go > /dev/null || die "cannot build the sample workload: Go is missing"
    work=$(mktemp -d "$STATE/.sample.XXXXXX")
    step "build sample" env -C "$HERE/go/sample" CGO_ENABLED=0 GOWORK=off go build -buildvcs=false -trimpath -ldflags '-s -w' -o "$work/sample" .
    for version in v1 v2 v3; do
      spec=${spec:-}${spec:+,}"{\"ref\": \"localhost/sample:$version\", \"files\": {\"/sample\": \"$work/sample\"},
        \"entrypoint\": [\"/sample\"], \"user\": \"65532:65532\", \"env\": [\"SAMPLE_VERSION=$version\"]}"
    done
    echo "[$spec]" > "$work/sample.json"
    python3 "$HERE/mkimage.py" "$work/sample.tar" "$work/sample.json"
    # another run may have been faster: its result is as good
    mv -T "$work" "$cached" 2> /dev/null || rm -rf "$work"
    keep 1 "$STATE/sample"
  fi
  cp "$cached/sample.tar" "$OUT/sample.tar"
  archives+=("$OUT/sample.tar")
}

archives=() reference=localhost/rollout-guard:${IMAGE_TAG:-dev}
case $what in
  guard) guard ;;
  sample) sample ;;
  all) guard; sample ;;
  *) die "image.sh guard|sample|all, not $what" ;;
esac
clusters=()
if [ "$cluster" = - ]; then
  for name in rollout-guard rollout-guard-test{,-2}; do
    if "$HERE/cluster.sh" status "$name" > /dev/null 2>&1; then clusters+=("$name"); fi
  done
elif [ -n "$cluster" ]; then
  clusters=("$cluster")
fi
for name in "${clusters[@]}"; do "$HERE/cluster.sh" load "$name" "${archives[@]}"; done
echo "$reference"
