#!/bin/sh
# All checks, as `make check` and CI run them. Last line: "N passed, N failed, N skipped".
set -u
cd "$(dirname "$0")/.." || exit 2
export ORACLE
passed=0 failed=0 skipped=0 start=$(date +%s)
jobs=$(nproc)

# count LABEL COMMAND...: one check that passes or fails.
count() {
    label=$1; shift
    echo "== $label"
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $label"; fi
}
# suite LABEL COMMAND...: a run of ci/run-tests.sh somewhere inside, whose totals are added.
suite() {
    label=$1; shift
    echo "== $label"
    out=build/check.out
    "$@" >"$out" 2>&1; status=$?
    cat "$out"
    totals=$(grep -aE '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$out" | tail -n 1)
    # shellcheck disable=SC2086
    set -- $(echo "${totals:-0 passed, 0 failed, 0 skipped}" | tr -cd '0-9 ')
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    if [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; then failed=$((failed + 1)); echo "FAILED: $label"; fi
}

mkdir -p build
count "rules: spec against code and tests" ci/spec-check.sh
count "the rule checker itself" ci/spec-check-test.sh
suite "tests" make --no-print-directory -j"$jobs" test
suite "tests under AddressSanitizer and UndefinedBehaviorSanitizer" \
    make --no-print-directory -j"$jobs" asan
suite "tests with coverage, at least 95 % of the lines of ref/ and host/" \
    make --no-print-directory -j"$jobs" coverage
count "golden vectors: dsv4 verify --path ref" build/dsv4 verify --path ref
count "golden vectors: rebuilt, the same bytes" make --no-print-directory -j"$jobs" vectors-check
count "museum: every exhibit is caught, the harmless accepted" \
    make --no-print-directory -j"$jobs" mutants
count "docs/errata.md" ci/errata.sh --check build
count "example plugin passes, and its mistake is named" ci/example-check.sh build
count "status table of README.md" ci/status.sh --check build
echo "checked in $(($(date +%s) - start)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
