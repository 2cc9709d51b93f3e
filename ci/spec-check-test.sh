#!/bin/sh
# ci/spec-check.sh must fail on every kind of fault: each is planted in a copy of the tree.
set -u
cd "$(dirname "$0")/.." || exit 2
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
faults=0

# planted LABEL FILE SED-SCRIPT EXPECTED-MESSAGE
planted() {
    rm -rf "$copy/tree"
    mkdir -p "$copy/tree"
    cp -r ci spec ref host tests "$copy/tree/"
    sed -i "$3" "$copy/tree/$2"
    if cmp -s "$2" "$copy/tree/$2"; then
        echo "$1: nothing was planted in $2"; faults=$((faults + 1)); return
    fi
    if "$copy/tree/ci/spec-check.sh" >"$copy/out" 2>&1 || ! grep -q -- "$4" "$copy/out"; then
        echo "$1: not noticed; expected '$4'"; cat "$copy/out"; faults=$((faults + 1))
    fi
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
[ "$faults" -eq 0 ] && echo "spec-check: 11 planted faults, each noticed"
[ "$faults" -eq 0 ]
