#!/bin/sh
# third-party.sh BUILD: other people's packages against the golden vectors; writes docs/conformance.md.
# Not a part of `make check`: it installs some 6 GB from PyPI (torch and what it brings along).
set -eu
build=${1:?usage: ci/third-party.sh BUILD}
cd "$(dirname "$0")/.."
case $build in /*) ;; *) build=$PWD/$build ;; esac
venv=$build/venv
wanted=vectors/adapters/requirements.txt

if ! cmp -s "$wanted" "$venv/installed.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement "$wanted"
    cp "$wanted" "$venv/installed.txt"
fi

out=$build/third-party
mkdir -p "$out"
export OMP_NUM_THREADS=2 PYTHONDONTWRITEBYTECODE=1
reports=
for package in transformers nano; do
    "$venv/bin/python" "vectors/adapters/${package}_vectors.py" vectors/v1 \
        "$out/$package.h5" "$out/$package-notes.json"
    # 1: some cases fail. That is for the report to say.
    "$build/dsv4" verify --candidate "$out/$package.h5" --vectors vectors/v1 --numerics exact \
        --json "$out/$package.json" >"$out/$package.txt" || [ $? = 1 ]
    tail -n 1 "$out/$package.txt"
    "$venv/bin/python" "vectors/adapters/${package}_vectors.py" vectors/v1 \
        "$out/$package-mask.h5" "$out/mask-notes.json" --mask-only >/dev/null
    "$build/dsv4" verify --candidate "$out/$package-mask.h5" --vectors vectors/v1 --numerics exact \
        --op '*/*left-padded*' --no-diagnosis --json "$out/$package-mask.json" >/dev/null || [ $? = 1 ]
    reports="$reports $out/$package.json $out/$package-notes.json $out/$package-mask.json"
done
mkdir -p docs
# shellcheck disable=SC2086
"$venv/bin/python" vectors/adapters/conformance.py docs/conformance.md $reports
