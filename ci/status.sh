#!/bin/sh
# The status table of README.md, made from the chapters and from the logs of the last test run.
#
#   ci/status.sh BUILD             rewrites the table
#   ci/status.sh --check BUILD     fails (1) where README.md says something else
set -u
check=
if [ "${1-}" = --check ]; then check=1; shift; fi
build=${1:?usage: ci/status.sh [--check] BUILD}
cd "$(dirname "$0")/.." || exit 2

table() {
    echo '| chapter | rules | code | optimised | its tests |'
    echo '|---|---|---|---|---|'
    for chapter in config checkpoint numerics quant linear rmsnorm rope hadamard embed mhc compressor \
        indexer core_attn attention gate expert moe block head mtp forward state muon; do
        code=$(sed -n 's/^Code: //p' "spec/$chapter.md" | sed 's/`//g; s/(\.\.\//(/g; s/\. Weights*:.*//; s/\.$//')
        rules=$(grep -c "^- \*\*$chapter\." "spec/$chapter.md")
        log=$build/tests/test_$chapter.log
        passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test(s).*/\1/p' "$log" 2>/dev/null)
        failed=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test(s).*/\1/p' "$log" 2>/dev/null)
        fast=
        [ -f "fast/$chapter.c" ] && fast="[fast/$chapter.c](fast/$chapter.c)"
        echo "| [$chapter](spec/$chapter.md) | $rules | $code | $fast | ${passed:-none} passed${failed:+, $failed failed} |"
    done
}
awk -v table="$(table)" '
/<!-- status -->/ { print; print table; inside = 1 }
/<!-- end of status -->/ { inside = 0 }
!inside { print }
inside && !/<!-- status -->/ { next }' README.md > "$build/README.md" || exit 2
if [ -z "$check" ]; then
    cp "$build/README.md" README.md
elif ! diff README.md "$build/README.md"; then
    echo "the status table of README.md is not that of the last test run: run \`make status\`" >&2
    exit 1
fi
