#!/bin/sh
# docs/errata.md, made from the museum's stories.
#
#   ci/errata.sh BUILD             rewrites it
#   ci/errata.sh --check BUILD     fails (1) where it says something else
set -u
check=
if [ "${1-}" = --check ]; then check=1; shift; fi
build=${1:?usage: ci/errata.sh [--check] BUILD}
cd "$(dirname "$0")/.." || exit 2
"$build/tests/tool_museum" errata "$build/errata.raw" || exit 2
# Lines of at most 100 columns; list items hang by two.
awk '{ line = $0; indent = /^- / ? "  " : ""
       while (length(line) > 100) {
           cut = 100
           while (cut > 1 && substr(line, cut, 1) != " ") cut--
           if (cut <= 3) break
           print substr(line, 1, cut - 1)
           line = indent substr(line, cut + 1)
       }
       print line }' "$build/errata.raw" >"$build/errata.md"
if [ -z "$check" ]; then
    cp "$build/errata.md" docs/errata.md
elif ! diff docs/errata.md "$build/errata.md"; then
    echo "docs/errata.md is not what the museum says: run \`make errata\`" >&2
    exit 1
fi
