#!/bin/sh
# The portable kernels on another processor: builds for aarch64, and runs the tests of fast/ and all golden
# vectors under an emulator.
#
#   ci/aarch64.sh BUILD            last line: "N passed, N failed, N skipped"; exit 0 or 1
#   ci/aarch64.sh --fetch BUILD    only gets what it needs
#
# The compiler, the emulator and the libraries come from Debian's mirror, as apt knows it, into
# BUILD/aarch64/system. They are unpacked there, not installed: the machine's own packages stay as they
# are, and nobody has to be root. Where they cannot be had, that is a failure for root, which is what CI
# runs as, and counts as skipped for everybody else.
set -u
only_fetch=
[ "${1-}" = --fetch ] && { only_fetch=yes; shift; }
build=${1:?usage: ci/aarch64.sh [--fetch] BUILD}
cd "$(dirname "$0")/.." || exit 2
here=$build/aarch64
case $here in /*) ;; *) here=$PWD/$here ;; esac
system=$here/system
root=$system/root tools=$system/tools
tool_packages="binutils-aarch64-linux-gnu cpp-12-aarch64-linux-gnu gcc-12-aarch64-linux-gnu
               libgcc-12-dev-arm64-cross qemu-user-static"
library_packages="libc6-dev libgsl-dev libhdf5-dev libjansson-dev libssl-dev libcmocka-dev"

# without REASON...: the end, where the system cannot be had.
without() {
    echo "aarch64: $*"
    [ "$(id -u)" != 0 ] && { echo "0 passed, 0 failed, 1 skipped"; exit 0; }
    exit 1
}

# apt with a state of its own, which knows no installed package.
private_apt() {
    APT_CONFIG=$system/apt.conf apt-get -qq "$@"
}

configure_apt() {
    mirror=$(apt-get update --print-uris 2>/dev/null |
             sed -n "s|^'\(.*\)/dists/bookworm/main/binary-.*|\1|p" | head -n 1)
    mkdir -p "$system/apt/lists/partial" "$system/apt/archives/partial"
    : >"$system/apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
         "${mirror:-http://deb.debian.org/debian} bookworm main" >"$system/apt/sources.list"
    cat >"$system/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "$system/apt";
Dir::State::status "$system/apt/status";
Dir::Cache "$system/apt";
Dir::Log "$system/apt";
Dir::Etc::sourcelist "$system/apt/sources.list";
Dir::Etc::sourceparts "-";
END
}

unpack() {
    into=$1; shift
    mkdir -p "$into"
    for package in "$@"; do dpkg -x "$package" "$into" || return 1; done
}

fetch() {
    rm -rf "$system"
    mkdir -p "$system/tool-packages"
    configure_apt
    # shellcheck disable=SC2046,SC2086
    private_apt update &&
        private_apt install -y --download-only $library_packages &&
        (cd "$system/tool-packages" &&
         private_apt download $(printf '%s:amd64 ' $tool_packages | sed 's/cross:amd64/cross/')) &&
        unpack "$root" "$system"/apt/archives/*.deb &&
        unpack "$tools" "$system"/tool-packages/*.deb
}

[ "$(uname -m)" = aarch64 ] && {
    echo "aarch64: this machine is one; \`make test\` shows it"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
}
# shellcheck disable=SC2086,SC2116
wanted="2 bookworm $(echo $tool_packages $library_packages)"
if [ "$(cat "$system/ready" 2>/dev/null)" != "$wanted" ]; then
    { [ "$(uname -m)" = x86_64 ] && grep -q '^VERSION_ID="12"' /etc/os-release 2>/dev/null; } ||
        without "the cross compiler is fetched on Debian 12, x86-64, only"
    echo "aarch64: fetching a compiler, an emulator and libraries into $system"
    mkdir -p "$here"
    fetch >"$here/fetch.log" 2>&1 || {
        tail -n 5 "$here/fetch.log"
        without "they could not be fetched; the whole: $here/fetch.log"
    }
    rm -rf "$system/apt" "$system/tool-packages" "${tools:?}/usr/share"
    find "$tools/usr/bin" -name 'qemu-*' ! -name qemu-aarch64-static -delete
    echo "$wanted" >"$system/ready"
fi
[ -n "$only_fetch" ] && exit 0

RUN_UNDER="$tools/usr/bin/qemu-aarch64-static -L $root"
prefix=$tools/usr/bin/aarch64-linux-gnu
PKG_CONFIG_LIBDIR=$root/usr/lib/aarch64-linux-gnu/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root \
    LD_LIBRARY_PATH=$tools/usr/lib/x86_64-linux-gnu \
    make --no-print-directory -j"$(nproc)" BUILD="$here" CC="$prefix-gcc-12 --sysroot=$root" \
        AR="$prefix-ar" PACKAGES="hdf5-serial jansson gsl libcrypto" \
        ONLY='test_fast_[!v]*' tests >"$here/make.log" 2>&1 || {
    tail -n 20 "$here/make.log"
    echo "aarch64: it does not compile; the whole: $here/make.log"
    exit 1
}
export RUN_UNDER DSV4_EMULATED=1
# Beside the tests, the longest of which would leave a processor idle.
# shellcheck disable=SC2086
$RUN_UNDER "$here/dsv4" verify --path fast --isa portable >"$here/verify.log" &
verifying=$!
# test_fast_vectors has the same cases.
ci/run-tests.sh "$here" 'test_fast_[!v]*' >"$here/tests.log"
tested=$?
wait $verifying || {
    cat "$here/tests.log"
    grep -a 'FAIL' "$here/verify.log" | head -n 40
    tail -n 1 "$here/verify.log"
    echo "aarch64: the golden vectors fail; the whole: $here/verify.log"
    exit 1
}
tail -n 1 "$here/verify.log"
cat "$here/tests.log"
exit $tested
