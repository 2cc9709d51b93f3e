#!/bin/sh
# The stranger's path of README.md: the example plugin passes, and its built-in mistake fails and is named.
set -u
build=${1:?usage: ci/example-check.sh BUILD}
cd "$(dirname "$0")/.." || exit 2
compiler=${CC:-cc}
$compiler -O2 -shared -fPIC -I vectors docs/examples/plugin.c -o "$build/example.so" -lm || exit 1
$compiler -O2 -DMISTAKE -shared -fPIC -I vectors docs/examples/plugin.c -o "$build/mistake.so" -lm ||
    exit 1
"$build/dsv4" verify --plugin "$build/example.so" | tail -n 1 || exit 1
"$build/dsv4" verify --plugin "$build/example.so" >/dev/null || {
    echo "example: the plugin does not pass" >&2
    exit 1
}
"$build/dsv4" verify --plugin "$build/mistake.so" --json "$build/mistake.json" >/dev/null
[ $? -eq 1 ] || { echo "example: the mistake passes" >&2; exit 1; }
grep -q '"diagnosis": "rope-half-split"' "$build/mistake.json" || {
    echo "example: the mistake is not named" >&2
    exit 1
}
echo "example: passes; its mistake is named rope-half-split"
