#!/bin/sh
# The tests of fast/ under ThreadSanitizer, and the golden vectors with more threads than there are
# processors. First a program with a race is run, to see that races are reported on this machine.
#
#   ci/tsan.sh BUILD     last line: "N passed, N failed, N skipped"; exit 0 or 1
set -u
build=${1:?usage: ci/tsan.sh BUILD}
cd "$(dirname "$0")/.." || exit 2
here=$build/tsan
options="-O2 -g1 -fsanitize=thread" # under -O1 the tests take half as long again
mkdir -p "$here"

cat >"$here/race.c" <<'END'
#include <pthread.h>
static int shared;
static void *add(void *unused)
{
    for (int i = 0; i < 1000; i++)
        shared++;
    return unused;
}
int main(void)
{
    pthread_t a, b;
    pthread_create(&a, NULL, add, NULL);
    pthread_create(&b, NULL, add, NULL);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    return 0;
}
END
# shellcheck disable=SC2086
${CC:-cc} $options "$here/race.c" -o "$here/race" -pthread || exit 1

# Programs that are loaded anywhere in memory may lie where the sanitizer keeps its own: then they run at
# fixed addresses.
export TSAN_OPTIONS="halt_on_error=0 exitcode=66 ${TSAN_OPTIONS-}"
RUN_UNDER=none
for way in "" "setarch -R"; do
    found=0
    for try in 1 2 3; do
        $way "$here/race" >"$here/race.log" 2>&1
        [ $? -eq 66 ] && grep -q 'WARNING: ThreadSanitizer: data race' "$here/race.log" && found=$try
    done
    [ "$found" -eq 3 ] && { RUN_UNDER=$way; break; }
done
if [ "$RUN_UNDER" = none ]; then
    cat "$here/race.log"
    echo "tsan: a program with a race is not reported on this machine"
    exit 1
fi
echo "tsan: the race of $here/race.c is reported"
export RUN_UNDER

make --no-print-directory -j"$(nproc)" BUILD="$here" OPT="$options" ONLY='test_fast_[!v]*' tests \
    >"$here/make.log" 2>&1 || {
    tail -n 20 "$here/make.log"
    echo "tsan: it does not compile; the whole: $here/make.log"
    exit 1
}
threads=$(($(nproc) + 1)) # more than there are processors: more orders of events
# shellcheck disable=SC2086
$RUN_UNDER "$here/dsv4" verify --path fast --threads $threads --no-diagnosis \
    >"$here/verify.log" 2>&1 || {
    grep -aE 'FAIL|WARNING|SUMMARY' "$here/verify.log" | head -n 40
    echo "tsan: --threads $threads: a race, or wrong; the whole: $here/verify.log"
    exit 1
}
echo "tsan: --threads $threads: $(tail -n 1 "$here/verify.log")"
# test_fast_vectors has the same cases.
ci/run-tests.sh "$here" 'test_fast_[!v]*'
