#!/bin/sh
# All checks, as `make check` and CI run them. Last line: "N passed, N failed, N skipped".
set -u
cd "$(dirname "$0")/.." || exit 2
export ORACLE
passed=0 failed=0 skipped=0 start=$(date +%s)
jobs=$(nproc)

# Every check says how long it took.
begin() { echo "== $1"; began=$(date +%s); }
end() { echo "   ($(($(date +%s) - began)) s)"; }
# count LABEL COMMAND...: one check that passes or fails.
count() {
    label=$1; shift
    begin "$label"
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $label"; fi
    end
}
# suite LABEL COMMAND...: a run of ci/run-tests.sh somewhere inside, whose totals are added.
suite() {
    label=$1; shift
    begin "$label"
    out=build/check.out
    "$@" >"$out" 2>&1; status=$?
    cat "$out"
    totals=$(grep -aE '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$out" | tail -n 1)
    # shellcheck disable=SC2046
    set -- $(echo "${totals:-0 passed, 0 failed, 0 skipped}" | tr -cd '0-9 ')
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    if [ "$status" -ne 0 ] && [ "$2" -eq 0 ]; then failed=$((failed + 1)); echo "FAILED: $label"; fi
    end
}
# fast LEVEL [PROGRAM]: the golden vectors with the kernels of that instruction set. What ran is in the first
# line of the answer: a machine that has not got the level runs a lower one, which does not count.
fast() {
    begin "golden vectors: ${2:-build/dsv4} verify --path fast --isa $1"
    "${2:-build/dsv4}" verify --path fast --isa "$1" >build/fast.out; status=$?
    ran=$(sed -n '1s/^path fast (\([a-z0-9]*\),.*/\1/p' build/fast.out)
    echo "asked for $1, ran ${ran:-nothing}: $(tail -n 1 build/fast.out)"
    if [ "$status" -ne 0 ] || [ -z "$ran" ]; then
        cat build/fast.out
        failed=$((failed + 1)); echo "FAILED: $1"
    elif [ "$ran" != "$1" ]; then
        skipped=$((skipped + 1)); echo "skipped: this machine has no $1"
    else
        passed=$((passed + 1))
    fi
    end
}

mkdir -p build
# Comes over the network while the processors have other work.
ci/aarch64.sh --fetch build >build/aarch64-fetch.log 2>&1 &
fetching=$!
count "rules: spec against code and tests" ci/spec-check.sh
count "the rule checker itself" ci/spec-check-test.sh
suite "tests" make --no-print-directory -j"$jobs" test
count "fast/, host/ and ref/ know of each other what they may" ci/symbols.sh build
count "the checker of that itself" ci/symbols-test.sh
suite "tests under AddressSanitizer and UndefinedBehaviorSanitizer; they run 95 % of the lines or more" \
    make --no-print-directory -j"$jobs" asan
suite "tests of fast/ under ThreadSanitizer" ci/tsan.sh build
wait $fetching
suite "tests of fast/ and golden vectors on aarch64, emulated" ci/aarch64.sh build
# One file of the vectors keeps one processor busy for long: the other has the next checks meanwhile.
make --no-print-directory -j"$jobs" vectors-check >build/vectors-check.log 2>&1 &
rebuilding=$!
rebuilt() {
    wait $rebuilding; status=$?
    cat build/vectors-check.log
    return $status
}
count "golden vectors: dsv4 verify --path ref" build/dsv4 verify --path ref
for level in portable avx2 avx512 avx512bf16 amx; do fast $level; done
fast amx build/tests/tool_trap # where the machine has no tiles: as compiled, each instruction answered
count "museum: every exhibit is caught, the harmless accepted" \
    make --no-print-directory -j"$jobs" mutants
count "golden vectors: rebuilt, the same bytes" rebuilt
count "docs/errata.md" ci/errata.sh --check build
count "example plugin passes, and its mistake is named" ci/example-check.sh build
count "status table of README.md" ci/status.sh --check build
echo "checked in $(($(date +%s) - start)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
