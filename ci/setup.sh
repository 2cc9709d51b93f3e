#!/bin/sh
# Installs what the build and the tests need, on Debian 12; does nothing where it is there already.
set -u
packages="gcc libc6-dev make pkg-config libgsl-dev libhdf5-dev libjansson-dev libssl-dev libcmocka-dev
          gcovr"

if ! command -v dpkg-query >/dev/null 2>&1; then
    pkg-config --exists gsl hdf5 jansson libcrypto cmocka 2>/dev/null && exit 0
    echo "setup: this is not Debian; please install: a C11 compiler, make, pkg-config, GSL, HDF5," \
         "jansson, OpenSSL's libcrypto, cmocka and gcovr, with their development files" >&2
    exit 2
fi
missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    run=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    run=sudo
else
    echo "setup: missing packages, and no root here to install them. Please run:" >&2
    echo "    sudo apt-get install$missing" >&2
    exit 2
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086
if ! { $run apt-get update && $run apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "setup: apt-get could not install$missing" >&2
    rm -f "$log"
    exit 2
fi
rm -f "$log"
