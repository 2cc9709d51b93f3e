#!/bin/sh
# The main job on a checkpoint that is made on the spot: small, random, and in the released layout.
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
demo=$build/demo
# Shows a command as one would type it, then runs it.
run() {
    echo
    printf '$'
    for word in "$@"; do
        case $word in *\ *) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    echo
    "$@"
}

rm -rf "$demo"
mkdir -p "$demo"
run "$build/tests/tool_make_checkpoint" ci/demo.json "$demo/model" --style released --seed 1
run "$build/dsv4" inspect "$demo/model"
run "$build/dsv4" logits "$demo/model" --tokens "5 17 99" --path ref --numerics exact
awk 'BEGIN { for (i = 0; i < 200; i++) print (i * 37 + 11) % 256 }' >"$demo/ids.txt"
run "$build/dsv4" logits "$demo/model" --ids "$demo/ids.txt" --numerics exact --mtp -o "$demo/whole.h5"
run "$build/dsv4" logits "$demo/model" --ids "$demo/ids.txt" --numerics exact --mtp --chunk 7 \
    -o "$demo/chunks.h5"
echo
echo "Decoding in chunks gives what one pass gives:"
run "$build/dsv4" diff "$demo/whole.h5" "$demo/chunks.h5" --tol 1e-12
run "$build/dsv4" logits "$demo/model" --ids "$demo/ids.txt" --numerics released --mtp -o "$demo/released.h5"
echo
echo "And this is how far the released numerics are from the mathematics, on this model:"
run "$build/dsv4" diff "$demo/whole.h5" "$demo/released.h5" --tol 1
