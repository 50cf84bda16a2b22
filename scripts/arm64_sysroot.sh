#!/usr/bin/env bash
# Unpacks the libraries Fovea links, built for 64-bit Arm, into FOLDER: nothing is installed and no foreign architecture is enabled.
# usage: scripts/arm64_sysroot.sh FOLDER
set -euo pipefail
folder=$(realpath -m "${1:?usage: arm64_sysroot.sh FOLDER}")
[ -f "$folder/complete" ] && exit 0

readonly packages=(libhwy-dev libpcre2-dev libpcre2-8-0 libgtest-dev libgmock-dev)
rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/packages"
options=(-q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$folder/apt/lists"
  -o Dir::State::status=/dev/null -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)

# Ubuntu keeps its Arm packages on another server than those for x86-64.
. /etc/os-release
if [ "$ID" = ubuntu ]; then
  echo "deb http://ports.ubuntu.com/ubuntu-ports $VERSION_CODENAME main universe" >"$folder/apt/sources.list"
  options+=(-o Dir::Etc::sourcelist="$folder/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null)
fi

apt-get "${options[@]}" update
cd "$folder/apt/packages"
# The library's package carries its interface version in its name (libhwy1, libhwy1t64).
mapfile -t highway < <(apt-cache "${options[@]:1}" depends libhwy-dev | sed -n 's/^ *Depends: \(libhwy1.*\)/\1/p')
apt-get "${options[@]}" download "${packages[@]}" "${highway[@]}"
for package in *.deb; do dpkg-deb -x "$package" "$folder"; done
rm -rf "$folder/apt"
touch "$folder/complete"
