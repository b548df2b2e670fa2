#!/bin/bash
# The krew manifest of a release, from its archives:
#
#     render.sh VERSION DIR [BASE-URL]   > rollout-guard.yaml
#
# VERSION is v0.1.0 or 0.1.0; DIR holds rollout-guard-OS-ARCH.tar.gz (.zip for
# windows), see archive.sh; they are fetched from BASE-URL/VERSION/. A platform
# without an archive is left out, which is said on stderr.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 2 ] || [ $# = 3 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }
version=v${1#v} dir=$2 base=${3:-https://example.invalid/rollout-guard}
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$ ]] || { echo "error: not a version: $1" >&2; exit 2; }
[[ $base =~ ^https://[^[:space:]\"]+$ ]] || { echo "error: not an https URL: $base" >&2; exit 2; }
[ -d "$dir" ] || { echo "error: there is no directory $dir" >&2; exit 2; }

# One platform at a time: its lines are kept back until its archive is known.
platform=() archive="" count=0 platforms=0
give_platform() {
  [ ${#platform[@]} -gt 0 ] || return 0
  platforms=$((platforms + 1))
  if [ -f "$dir/$archive" ]; then
    local sum line
    sum=$(sha256sum "$dir/$archive" | cut -d ' ' -f 1)
    for line in "${platform[@]}"; do
      case $line in
        *' uri: '*) echo "    uri: $base/$version/$archive" ;;
        *' sha256: '*) echo "    sha256: \"$sum\"" ;;
        *) printf '%s\n' "$line" ;;
      esac
    done
    count=$((count + 1))
  else
    echo "left out, as it is not in $dir: $archive" >&2
  fi
  platform=() archive=""
}
while IFS= read -r line; do
  case $line in
    '#'*) continue ;;
    '  - selector:'*) give_platform; platform=("$line"); continue ;;
    '  version: '*) line="  version: $version" ;;
    *' uri: '*) archive=${line##*/} ;;
  esac
  if [ ${#platform[@]} -gt 0 ]; then platform+=("$line"); else printf '%s\n' "$line"; fi
done < "$here/rollout-guard.yaml"
give_platform
[ "$count" -gt 0 ] || { echo "error: none of $platforms archives is in $dir" >&2; exit 1; }
