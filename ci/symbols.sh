#!/bin/sh
# What the objects of a build may refer to, seen in their symbols, instructions and included files:
#
# - fast/ and ref/ share no code, and host/ knows of ref/ only the table dsv4_path_ref, in path.c: otherwise
#   the one would not check the other. GSL is for ref/ alone.
# - A kernel file of an instruction set, fast/x86/STEM_LEVEL.c, shows nothing but its table
#   fast_STEM_LEVEL; only fast/isa.c, which finds out what the machine can run, refers to such tables; and
#   no other object has instructions beyond those that every machine has. Otherwise the linker might take
#   a function that was compiled for a new machine into what runs on an old one.
#
#   ci/symbols.sh BUILD       fails (1) where it is otherwise
set -u
build=${1:?usage: ci/symbols.sh BUILD}
cd "$(dirname "$0")/.." || exit 2
sources=$(ls ref/*.c host/*.c fast/*.c)
case $(${CC:-cc} -dumpmachine) in x86_64-*) sources="$sources $(ls fast/x86/*.c)" ;; esac
objects='' bad=0
for source in $sources; do
    object=$build/obj/${source%.c}.o
    [ -f "$object" ] || { echo "symbols: $object is not built" >&2; exit 1; }
    objects="$objects $object"
done

library='
function complain(what) { print "symbols: " what > "/dev/stderr"; bad = 1 }
# Of an object or source: ref, host, fast, or kernel.
function part_of(path) {
    if (path ~ /(^|\/)fast\/x86\/[a-z0-9_]+\.[cod]$/) return "kernel"
    return path ~ /(^|\/)ref\/[a-z0-9_]+\.[cod]$/ ? "ref" : path ~ /(^|\/)host\// ? "host" : "fast"
}
function table_of(path) { sub(/.*\//, "fast_", path); sub(/\.o$/, "", path); return path }
'
# A line is "object: [address] type symbol".
# shellcheck disable=SC2086
nm -A $objects | awk "$library"'
{
    object = $1; sub(/:[0-9a-f]*$/, "", object)
    symbol = $NF; type = $(NF - 1); part = part_of(object)
    seen[part] = 1
    if (part == "kernel") kernels[object] = 1
    if (type == "U" || type == "w") {
        refers[++n] = symbol; from[n] = object
    } else if (type !~ /^[a-z]$/ || type == "u") {
        home[symbol] = part == "kernel" ? "fast" : part
        if (part != "kernel") next
        if (symbol == table_of(object) && type ~ /^[RD]$/) tables[symbol] = object
        else complain(object " shows more than its table: " type " " symbol)
    }
}
END {
    for (object in kernels)
        if (!(table_of(object) in tables)) complain(object " has no table " table_of(object))
    for (i = 1; i <= n; i++) {
        symbol = refers[i]; object = from[i]; part = part_of(object)
        if (part == "ref" ? home[symbol] == "fast" : home[symbol] == "ref" && part != "ref")
            if (!(symbol == "dsv4_path_ref" && object ~ /\/host\/path\.o$/))
                complain(object " refers to " symbol " of " home[symbol] "/")
        if (part != "ref" && symbol ~ /^(gsl|cblas)_/) complain(object " refers to " symbol " of GSL")
        if (symbol in tables && object !~ /\/fast\/isa\.o$/)
            complain(object " refers to " symbol ", which only fast/isa.c may")
    }
    if (!("ref" in seen && "fast" in seen)) complain("nothing of ref/ or fast/ seen")
    exit bad
}' || bad=1

# shellcheck disable=SC2046,SC2086
awk "$library"'
{
    other = part_of(FILENAME) == "ref" ? "fast" : "ref"
    for (i = 1; i <= NF; i++)
        if (part_of(FILENAME) != "host" && $i ~ "(^|/)" other "/[a-z0-9_]+\\.h$")
            complain(FILENAME " says that " other "/ is included: " $i)
}
END { exit bad }' $(echo $objects | sed 's/\.o\( \|$\)/.d\1/g') || bad=1
if grep -rnE '^ *# *include *[<"](gsl/|(\.\./)*ref/)' fast host; then
    echo "symbols: fast/ and host/ may include nothing of GSL or ref/" >&2
    bad=1
fi

# shellcheck disable=SC2086
case $sources in
*fast/x86/*) objdump -d --no-show-raw-insn $objects | awk "$library"'
    BEGIN {
        beyond["avx2"] = "%(zmm|k[0-7]|tmm)|%[xy]mm(1[6-9]|2[0-9]|3[01])"
        beyond["avx512"] = "%tmm|\tvdpbf16|\tvpdpb"
        beyond["avx512vnni"] = "%tmm|\tvdpbf16"
        beyond["avx512bf16"] = beyond["avx512vbmi"] = "%tmm"
        beyond[""] = "%([yz]mm|k[0-7]|tmm)|\tv[a-z0-9]+ .*%xmm"
    }
    / file format / {
        object = $1; sub(/:$/, "", object)
        level = ""
        if (part_of(object) == "kernel") { level = object; sub(/.*_/, "", level); sub(/\.o$/, "", level) }
        limit = level in beyond ? beyond[level] : "^$"
        next
    }
    /%/ && $0 ~ limit && !told[object]++ { complain(object " has an instruction beyond its level:" $0) }
    END { exit bad }' || bad=1 ;;
esac

[ "$bad" -eq 0 ] || exit 1
# shellcheck disable=SC2086
echo "symbols: $(echo $objects | wc -w) objects of fast/, host/ and ref/ refer to what they may"
