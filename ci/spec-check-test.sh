#!/bin/sh
# ci/spec-check.sh must fail on every kind of fault: each is planted in a copy of the tree.
set -u
cd "$(dirname "$0")/.." || exit 2
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
faults=0 planted=0

# planted LABEL FILE SED-SCRIPT EXPECTED-MESSAGE
planted() {
    fresh
    sed -i "$3" "$copy/tree/$2"
    if cmp -s "$2" "$copy/tree/$2"; then
        echo "$1: nothing was planted in $2"; faults=$((faults + 1)); return
    fi
    noticed "$1" "$4"
}
# named LABEL FILE EXPECTED-MESSAGE: a file too many.
named() {
    fresh
    echo >"$copy/tree/$2"
    noticed "$1" "$3"
}
noticed() {
    planted=$((planted + 1))
    if "$copy/tree/ci/spec-check.sh" >"$copy/out" 2>&1 || ! grep -q -- "$2" "$copy/out"; then
        echo "$1: not noticed; expected '$2'"; cat "$copy/out"; faults=$((faults + 1))
    fi
}
fresh() {
    rm -rf "$copy/tree"
    mkdir -p "$copy/tree/tests"
    cp -r ci spec ref host fast "$copy/tree/"
    cp tests/*.c "$copy/tree/tests/" # not the checkpoints that lie beside them
}
planted "rule without code" ref/mhc.c 's|/\* mhc.post.1: |/* |' 'rule mhc.post.1 has no code'
planted "code without rule" spec/mhc.md 's/^- \*\*mhc.post.2\*\*/- /' 'has rule mhc.post.2, the spec has not'
planted "text of the code" ref/mhc.c 's/a factor 2, and no eps/a factor 3, and no eps/' 'text of mhc.mix.3 differs'
planted "text of the spec" spec/rope.md 's/(x cos - y sin,/(x cos + y sin,/' 'text of rope.rotate.1 differs'
planted "rule stands twice in the spec" spec/mhc.md 's/mhc.mix.2\*\*/mhc.mix.1**/' 'mhc.mix.1 stands twice'
planted "rule stands twice in the code" ref/embed.c 's/embed.round.1/embed.row.1/' 'embed.row.1 stands twice in the code'
planted "rule in another chapter" spec/moe.md 's/moe.round.1\*\*/gate.round.1**/' 'gate.round.1 belongs to another chapter'
planted "rule outside its file" spec/moe.md 's|ref/moe.c|ref/mox.c|g' 'outside the files of its chapter'
planted "order" spec/gate.md 's/gate.hash.1\*\*/gate.tmp.1**/; s/gate.score.1\*\*/gate.hash.1**/; s/gate.tmp.1\*\*/gate.score.1**/' 'not in the order'
planted "rule without test" tests/test_gate.c 's/gate.topk.1//' 'gate.topk.1 is covered by no test'
planted "test without rule" tests/test_gate.c 's/gate.topk.1/gate.topk.9/' 'gate.topk.9, which is no rule'
planted "fast/ names no rule" fast/isa.c '2s|^|/* As in\n * mhc.post.99, rounded. */\n|' 'fast/isa.c:3: no rule mhc.post.99'
planted "fast/ names no chapter" fast/lanes.h '$s|^|int x; // mch.post.1\n|' 'no rule mch.post.1 in'
named "file of fast/ without chapter" fast/mch.c 'fast/mch.c has no chapter'
named "kernels without chapter" fast/mch_lanes.h 'fast/mch_lanes.h has no chapter'
named "portable kernels without chapter" fast/mch_portable.c 'fast/mch_portable.c has no chapter'
named "kernels of a level without chapter" fast/x86/core_atn_avx2.c 'core_atn_avx2.c has no chapter'
[ "$faults" -eq 0 ] && echo "spec-check: $planted planted faults, each noticed"
[ "$faults" -eq 0 ]
