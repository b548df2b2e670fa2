#!/bin/bash
# cargo deny: licences, sources and bans always; advisories only where the
# advisory database can be fetched, or has been.
. "$(dirname "$0")/lib.sh"

if ! command -v cargo-deny > /dev/null; then
  dir=$CACHE/tools/cargo-deny-$CARGO_DENY_VERSION
  if [ ! -x "$dir/bin/cargo-deny" ]; then
    # built in a directory of its own and renamed when complete
    rm -rf "$dir.tmp"
    step "install cargo-deny $CARGO_DENY_VERSION (some minutes, once)" \
      env -u CARGO_TARGET_DIR cargo install --locked --no-track --root "$dir.tmp" --version "$CARGO_DENY_VERSION" cargo-deny
    rm -rf "$dir"
    mv "$dir.tmp" "$dir"
  fi
  export PATH=$dir/bin:$PATH
fi

cd "$ROOT"
cargo deny --locked check bans licenses sources

if timeout 60 cargo deny fetch db > /dev/null 2>&1 < /dev/null; then
  cargo deny --locked check advisories
else
  echo "advisories: not checked, the advisory database cannot be fetched from here"
fi
