#!/bin/sh
# Coverage of ref/ and host/ by the tests of a --coverage build. Fails under 95 % of lines.
# Lines are left out only where a comment GCOVR_EXCL names the reason; they are listed and counted.
set -u
build=${1:?usage: ci/coverage.sh BUILD}
cd "$(dirname "$0")/.." || exit 2
options="--root . --object-directory $build/obj --filter ref/ --filter host/"
# shellcheck disable=SC2086
gcovr $options --branches 2>/dev/null | sed -n 's/^TOTAL  */branches: /p'
echo "left out:"
grep -n GCOVR_EXCL ref/*.c host/*.c | sed 's/^/    /'
echo "    $(grep -c GCOVR_EXCL_LINE ref/*.c host/*.c | awk -F: '{n += $2} END {print n + 0}') lines" \
     "and $(grep -c GCOVR_EXCL_START ref/*.c host/*.c | awk -F: '{n += $2} END {print n + 0}') ranges"
# shellcheck disable=SC2086
gcovr $options --fail-under-line 95 >"$build/coverage.txt" 2>&1
status=$?
sed -n '/^File/,$p' "$build/coverage.txt"
[ "$status" -eq 0 ]
