#!/bin/bash
# Print the path of a Chromium for the tests of the page: CHROMIUM where it is
# set, one that is on PATH, or Debian's package, installed (as root; 125 MB to
# fetch, 20 s). And a font: without any there is no text to look at.
. "$(dirname "$0")/lib.sh"

found() {
  local name
  for name in ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome-stable google-chrome; do
    if command -v "$name"; then return 0; fi
  done
  return 1
}

has_font() {
  [ -n "$(find /usr/share/fonts /usr/local/share/fonts ~/.fonts ~/.local/share/fonts -name '*.[to]t[fc]' -print -quit 2> /dev/null)" ]
}

want=()
found > /dev/null || want+=(chromium)
has_font || want+=(fonts-dejavu-core)
if [ ${#want[@]} != 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    die "${want[*]} is missing" "install a Chromium and a font (Debian: apt-get install ${want[*]}), or set CHROMIUM to the path of one"
  fi
  locked "$0" "$@"
  export DEBIAN_FRONTEND=noninteractive
  install=(apt-get install -y -q --no-install-recommends "${want[@]}")
  # The lists of packages may be missing, or name what is not there any more.
  step "install ${want[*]}" "${install[@]}" || {
    step "apt-get update" apt-get update -q
    step "install ${want[*]} again" "${install[@]}"
  }
fi
found
