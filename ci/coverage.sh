#!/bin/sh
# Coverage of ref/, host/ and fast/ by the tests of a --coverage build. Fails under 95 % of lines.
# Lines are left out only where a comment GCOVR_EXCL names the reason, and the kernels of instruction sets
# that this machine cannot run; all are listed and counted.
set -u
build=${1:?usage: ci/coverage.sh BUILD}
cd "$(dirname "$0")/.." || exit 2
# An interrupted gcovr leaves what gcov wrote lying here.
trap 'rm -f ./*.gcov' EXIT
trap 'exit 1' INT TERM
options="--gcov-ignore-parse-errors --root . --object-directory $build/obj --filter ref/ --filter host/ --filter fast/"
foreign= alone=
for level in avx2 avx512; do
    "$build/dsv4" verify --path fast --isa $level --op embed --no-diagnosis | grep -q "^path fast ($level," || {
        options="$options --exclude fast/x86/.*_${level}[.]c"
        foreign="$foreign $level"
    }
done
# Single files: STEM_LEVEL=FLAG of /proc/cpuinfo.
for file in limits_avx512bf16=avx512_bf16 linear_avx512bf16=avx512_bf16 linear_avx512vbmi=avx512_bf16 \
    core_attn_avx512bf16=avx512_bf16 limits_amx=amx_bf16 linear_avx512vnni=avx512_vnni; do
    grep -qw "${file#*=}" /proc/cpuinfo || {
        options="$options --exclude fast/x86/${file%=*}[.]c"
        alone="$alone ${file%=*}"
    }
done
# Tests emulate the instructions of amx, but with AVX-512 only.
case $foreign in *avx512*)
    options="$options --exclude fast/x86/(linear|indexer|core_attn)_amx[.]c" foreign="$foreign amx" ;;
esac
# Counted once, told twice.
# shellcheck disable=SC2086
gcovr $options -j "$(nproc)" --json "$build/coverage.json" >"$build/coverage.log" 2>&1 ||
    { cat "$build/coverage.log"; exit 1; }
report="gcovr --root . --add-tracefile $build/coverage.json"
$report --branches 2>/dev/null | sed -n 's/^TOTAL  */branches: /p'
echo "left out:"
for level in $foreign; do echo "    fast/x86/*_$level.c: this machine has no $level"; done
for file in $alone; do echo "    fast/x86/$file.c: this machine has no ${file#*_}"; done
marked() { grep -rn --include='*.[ch]' "$1" ref host fast; }
marked GCOVR_EXCL | sort | sed 's/^/    /'
echo "    $(marked GCOVR_EXCL_LINE | wc -l) lines and $(marked GCOVR_EXCL_START | wc -l) ranges"
$report --fail-under-line 95 >"$build/coverage.txt" 2>&1
status=$?
sed -n '/^File/,$p' "$build/coverage.txt"
[ "$status" -eq 0 ]
