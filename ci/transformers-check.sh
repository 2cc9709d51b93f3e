#!/bin/sh
# transformers-check.sh BUILD: the exact logits of every checkpoint in $ORACLE against transformers'.
# Not a part of `make check`: it installs some 6 GB from PyPI (torch and what it brings along).
set -eu
build=$1
venv=$build/venv
wanted=vectors/adapters/requirements.txt

if ! cmp -s "$wanted" "$venv/installed.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement "$wanted"
    cp "$wanted" "$venv/installed.txt"
fi

mkdir -p "$build/transformers"
compared=0
for model in "$ORACLE"/*/; do
    model=${model%/}
    [ -e "$model/config.json" ] && [ -e "$model.h5" ] || continue
    logits=$build/transformers/$(basename "$model").h5
    "$build/dsv4" logits "$model" --ids-h5 "$model.h5" --path ref --numerics exact -o "$logits" >&2
    "$venv/bin/python" vectors/adapters/transformers_logits.py "$model" "$model.h5" --compare "$logits"
    compared=$((compared + 1))
done
if [ "$compared" = 0 ]; then
    echo "transformers-check: no checkpoints in $ORACLE" >&2
    exit 2
fi
