#!/bin/sh
# Rebuilds the golden vectors.
#
#   ci/vectors.sh BUILD            replaces vectors/v1
#   ci/vectors.sh --check BUILD    rebuilds them elsewhere and compares: the same bytes; or, on a machine
#                                  whose libm rounds otherwise, the same inputs, and outputs to 1e-12
set -u
check=
[ "${1-}" = --check ] && { check=yes; shift; }
build=${1:?usage: ci/vectors.sh [--check] BUILD}
cd "$(dirname "$0")/.." || exit 2
there=vectors/v1
new=$build/vectors-v1
rm -rf "$new"
mkdir -p "$new"

# The whole models take longest: first.
"$build/generate-vectors" >"$new.operators" || exit 2
sed '1!G;h;$!d' "$new.operators" |
    xargs -P "$(nproc)" -I '{}' "$build/generate-vectors" "$new" '{}' >"$new.log" 2>&1 || {
    grep -a 'generate-vectors:' "$new.log"
    echo "vectors: not rebuilt; see $new.log" >&2
    exit 2
}
(cd "$new" && find . -type f | sed 's|^\./||' | LC_ALL=C sort | xargs sha256sum) >"$new.manifest"
mv "$new.manifest" "$new/MANIFEST"

if [ -z "$check" ]; then
    rm -rf "$there"
    mkdir -p vectors
    cp -r "$new" "$there"
    echo "vectors: $(find "$there" -name '*.h5' | wc -l) files," \
         "$(du -sb "$there" | cut -f 1) bytes in $there"
    exit 0
fi
if diff -r "$there" "$new" >"$new.diff"; then
    echo "vectors: rebuilt, the same bytes"
    exit 0
fi
cat "$new.diff"
if [ "$(uname -m)" = x86_64 ] && grep -q ' fma ' /proc/cpuinfo 2>/dev/null &&
   grep -q '^VERSION_ID="12"' /etc/os-release 2>/dev/null; then
    echo "vectors: rebuilt, and not the same bytes"
    exit 1
fi
"$build/dsv4" verify --vectors "$there" --path ref --no-diagnosis || exit 1
for file in "$there"/*.h5; do
    "$build/dsv4" diff "$file" "$new/$(basename "$file")" --tol 1e-12 >"$new.diff" || {
        cat "$new.diff"
        exit 1
    }
done
echo "vectors: rebuilt, the same to 1e-12"
