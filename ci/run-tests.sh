#!/bin/sh
# Runs the test programs of a build, as many at once as there are processors, and adds up what they
# say. A program that crashes, hangs or runs no test counts as one failure.
#
#   ci/run-tests.sh BUILD [PATTERN]     the programs that match the pattern, or test_*
#
# RUN_UNDER, if set, is a command that runs a program, such as an emulator. Last line: "N passed, N failed,
# N skipped"; exit 0 or 1.
set -u
build=${1:?usage: ci/run-tests.sh BUILD [PATTERN]}
pattern=${2:-test_*}
cd "$(dirname "$0")/.." || exit 2
DSV4_PROGRAM=$build/dsv4
RUN_UNDER=${RUN_UNDER-}
export DSV4_PROGRAM RUN_UNDER
rm -f "$build"/tests/*.log "$build"/tests/*.status
# shellcheck disable=SC2012,SC2086
names=$(cd tests && ls $pattern.c | sed 's/\.c$//') || exit 1
long="test_oracle test_fast_path test_oracle_fast test_fast_linear test_fast_bf16 test_fast_vectors test_synth
      test_bench test_fast_core_attn test_logits test_fast_moe test_vectors"

# The long ones first, so that none is left alone at the end.
# shellcheck disable=SC2016,SC2086
{ printf '%s\n' $long | grep -Fx "$names"; printf '%s\n' $names | grep -Fxv "$(printf '%s\n' $long)"; } |
    xargs -P "$(nproc)" -I '{}' sh -c '
        began=$(date +%s)
        timeout 1200 $RUN_UNDER "$1/tests/$2" >"$1/tests/$2.log" 2>&1
        echo $? $(($(date +%s) - began)) >"$1/tests/$2.status"' sh "$build" '{}'

passed=0 failed=0 skipped=0
number() { sed -n "s/^\[  *$2  *\] \([0-9][0-9]*\) test(s).*/\1/p" "$1" | tail -n 1; }
for name in $names; do
    log=$build/tests/$name.log
    status=none seconds=
    [ -f "$build/tests/$name.status" ] && read -r status seconds <"$build/tests/$name.status"
    p=$(number "$log" PASSED); f=$(number "$log" FAILED); s=$(number "$log" SKIPPED)
    p=${p:-0} f=${f:-0} s=${s:-0}
    if [ "$f" -eq 0 ] && { [ "$status" != 0 ] || [ $((p + s)) -eq 0 ]; }; then
        f=1
    fi
    printf '  %-24s %3d passed, %d failed, %d skipped%s\n' "$name" "$p" "$f" "$s" "${seconds:+, $seconds s}"
    if [ "$f" -ne 0 ]; then
        grep -aE 'ERROR|FAILED|error:|FAULT|skipped:|Sanitizer|runtime error' "$log" | head -n 40
        echo "    status $status; the whole: $log; again: DSV4_ORACLE=${DSV4_ORACLE-} $build/tests/$name"
    elif [ "$s" -ne 0 ]; then
        grep -a '^skipped:' "$log" | sort -u | sed 's/^/    /'
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
