#!/bin/bash
# Get prometheus and promtool from Debian's package into the cache and print the
# directory that they are in. The package is taken apart, not installed: nothing
# is started, and nothing on the machine changes.
. "$(dirname "$0")/lib.sh"

# By the release's name too: another Debian has another Prometheus.
release=$(. /etc/os-release 2> /dev/null && echo "${ID:-}-${VERSION_ID:-}")
PROMETHEUS=$STATE/prometheus-$(cd "$HERE" && hash_of "$(uname -m)" "$release" -- prometheus.sh)
if [ ! -x "$PROMETHEUS/prometheus" ]; then
  if ! command -v apt-get > /dev/null || ! command -v dpkg-deb > /dev/null; then
    # Not Debian: what is installed has to do.
    own=$(command -v prometheus || true)
    if [ -n "$own" ] && [ -x "${own%/*}/promtool" ]; then
      echo "${own%/*}"
      exit
    fi
    die "cannot get prometheus and promtool: apt-get and dpkg-deb are missing" \
      "elsewhere than on Debian, put both on PATH, in one directory"
  fi
  locked "$0" "$@"
  work=$PROMETHEUS.tmp
  rm -rf "$work"
  mkdir -p "$work"
  download=(env -C "$work" apt-get -qq download prometheus)
  # The lists may be none at all, or name a version that the mirror has replaced.
  if ! "${download[@]}" > "$STATE/log/download_prometheus.log" 2>&1; then
    if [ "$(id -u)" != 0 ]; then
      die "cannot download the package prometheus" "$(tail -n 1 "$STATE/log/download_prometheus.log")" \
        "run apt-get update as root, then this again"
    fi
    step "package lists" apt-get -qq -o DPkg::Lock::Timeout=300 update
    step "download prometheus" "${download[@]}"
  fi
  deb=("$work"/prometheus_*.deb)
  [ -e "${deb[0]}" ] || die "apt-get download prometheus left no package in $work"
  dpkg-deb --fsys-tarfile "${deb[0]}" | tar -x -C "$work" --strip-components=3 ./usr/bin/prometheus ./usr/bin/promtool
  rm "${deb[@]}"
  for program in prometheus promtool; do
    said=$("$work/$program" --version 2>&1) || die "$program of Debian's package does not run here" "${said%%$'\n'*}"
  done
  rm -rf "$PROMETHEUS"
  mv "$work" "$PROMETHEUS"
fi
touch "$PROMETHEUS"
keep 2 "$STATE/prometheus"
echo "$PROMETHEUS"
