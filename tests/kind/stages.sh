#!/bin/bash
# stages.sh TARGET... : make these targets one after the other, stop at the first
# that fails, and say at the end how long each took.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
total=$EPOCHSECONDS rc=0 lines=()
for target in "$@"; do
  printf '\n=== %s (%(%T)T)\n' "$target" -1
  t0=$EPOCHSECONDS
  make "$target" || rc=$?
  took=$((EPOCHSECONDS - t0))
  lines+=("$(printf '%-10s %5s s  %s' "$target" "$took" "$([ "$rc" = 0 ] && echo ok || echo FAILED)")")
  [ "$rc" = 0 ] || break
done
printf '\n'
printf '%s\n' "${lines[@]}"
printf '%-10s %5s s  %s\n' total $((EPOCHSECONDS - total)) "$([ "$rc" = 0 ] && echo ok || echo FAILED)"
exit "$rc"
