#!/bin/sh
# Compares the rules of spec/ with the code and the tests, both ways.
#
#   ci/spec-check.sh          fails (1) on a rule without code, code without a rule, text or order that
#                             differs, a rule that no test covers, a test that covers no rule
#   ci/spec-check.sh --sync   rewrites the rule comments in the code with the text of the spec
#
# A rule is a list item of a chapter:       - **mhc.post.1** Text, continued on indented lines.
# Its code carries the comment              /* mhc.post.1: Text. */    once, in a file that the chapter's
# "Code:" line links to. A test names what it covers:    /* covers: mhc.post.1 mhc.post.2 */
# Comments of fast/ name rules in passing: such as there are. Its files belong to chapters too.
set -u
mode=check
case "${1-}" in
--sync) mode=sync ;;
"") ;;
*) echo "usage: ci/spec-check.sh [--sync]" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.." || exit 2

library='
function squeeze(s) { gsub(/[ \t]+/, " ", s); sub(/^ /, "", s); sub(/ $/, "", s); return s }
function chapter_of(path) { sub(/.*\//, "", path); sub(/\.md$/, "", path); return path }
function complain(what) { print "spec-check: " what > "/dev/stderr"; bad++ }
# One line of a chapter: collects text[label], where[label], order[label], home[chapter, file].
function read_spec(line,   label, rest) {
    if (match(line, /^- \*\*[a-z0-9_]+\.[a-z0-9_]+\.[0-9]+\*\* /)) {
        label = substr(line, 5, RLENGTH - 7)
        if (label in text) complain(FILENAME ":" FNR ": rule " label " stands twice")
        if (label !~ "^" chapter_of(FILENAME) "\\.") complain(FILENAME ":" FNR ": rule " label " belongs to another chapter")
        text[label] = substr(line, RLENGTH + 1); where[label] = FILENAME ":" FNR
        order[label] = ++rules; name[rules] = label; current = label
    } else if (current != "" && line ~ /^  [^ ]/) text[current] = text[current] " " line
    else current = ""
    if (line ~ /^Code: /)
        while (match(line, /\(\.\.\/[a-z0-9_\/]+\.c\)/)) {
            home[chapter_of(FILENAME), substr(line, RSTART + 4, RLENGTH - 5)] = 1
            line = substr(line, RSTART + RLENGTH)
        }
}
'
code=$(ls ref/*.c host/*.c) || exit 2

if [ "$mode" = sync ]; then
    for file in $code; do
        awk "$library"'
        FILENAME ~ /\.md$/ { read_spec($0); next }
        function emit(indent, label,   words, n, i, line) {
            n = split(squeeze(label ": " text[label]), words, " ")
            line = indent "/*"
            for (i = 1; i <= n; i++) {
                if (length(line " " words[i]) > (i == n ? 97 : 100)) { print line; line = indent " *" }
                line = line " " words[i]
            }
            print line " */"
        }
        skipping { if (/\*\//) skipping = 0; next }
        match($0, /^ *\/\* [a-z0-9_]+\.[a-z0-9_]+\.[0-9]+(:| \*\/)/) {
            label = $2; sub(/:$/, "", label)
            if (label in text) {
                match($0, /^ */); emit(substr($0, 1, RLENGTH), label)
                if (!/\*\//) skipping = 1
                next
            }
        }
        { print }' spec/*.md "$file" > "$file.sync" || exit 2
        if cmp -s "$file" "$file.sync"; then rm "$file.sync"; else mv "$file.sync" "$file"; echo "rewrote $file"; fi
    done
    exit 0
fi

tests=$(ls tests/*.c 2>/dev/null)
awk "$library"'
function finish_comment(   label, body) {
    label = comment; sub(/:.*/, "", label)
    body = comment; sub(/^[^:]*:/, "", body)
    if (!(label in text)) { complain(at ": the code has rule " label ", the spec has not"); return }
    if (label in coded) { complain(at ": rule " label " stands twice in the code"); return }
    coded[label] = at
    if (!((substr(label, 1, index(label, ".") - 1), file) in home))
        complain(at ": rule " label " is outside the files of its chapter")
    if (squeeze(body) != squeeze(text[label]))
        complain(at ": the text of " label " differs\n  spec: " squeeze(text[label]) "\n  code: " squeeze(body))
    chapter = substr(label, 1, index(label, ".") - 1)
    if (order[label] < last[file, chapter]) complain(at ": rule " label " is not in the order of the chapter")
    last[file, chapter] = order[label]
}
FILENAME ~ /\.md$/ { read_spec($0); next }
FILENAME ~ /^tests\// {
    line = $0
    if (match(line, /covers: /)) { covering = 1; line = substr(line, RSTART + 8) }
    if (covering) {
        done = sub(/\*\/.*/, "", line)
        n = split(line, label, /[ ,*]+/)
        for (i = 1; i <= n; i++) if (label[i] ~ /\./) {
            if (!(label[i] in text)) complain(FILENAME ":" FNR ": covers " label[i] ", which is no rule")
            covered[label[i]] = 1
        }
        if (done) covering = 0
    }
    next
}
FNR == 1 { inside = 0; file = FILENAME }
{
    line = $0
    if (!inside && match(line, /\/\* [a-z0-9_]+\.[a-z0-9_]+\.[0-9]+(:| \*\/)/)) {
        inside = 1; comment = ""; at = FILENAME ":" FNR
        line = substr(line, RSTART + 3)
    } else if (inside) sub(/^ *\* ?/, " ", line)
    if (inside) {
        if (match(line, /\*\//)) { comment = comment substr(line, 1, RSTART - 1); inside = 0; finish_comment() }
        else comment = comment line
    }
}
END {
    for (i = 1; i <= rules; i++) {
        if (!(name[i] in coded)) complain(where[name[i]] ": rule " name[i] " has no code")
        if (!(name[i] in covered)) complain(where[name[i]] ": rule " name[i] " is covered by no test")
    }
    if (rules == 0) complain("no rules found in spec/")
    if (bad) { print "spec-check: " bad " faults in " rules " rules" > "/dev/stderr"; exit 1 }
    print "spec-check: " rules " rules, each with its code and a test"
}' spec/*.md $code $tests
status=$?
# no_rule LABEL: a substring of the list of all, since a grep for each label takes longest of all.
labels=" $(sed -n 's/^- \*\*\([^*]*\)\*\*.*/\1/p' spec/*.md | tr '\n' ' ')"
no_rule() { case $labels in *" $1 "*) return 1 ;; esac; }
# Labels that the table of operators and the museum's exhibits name.
for file in host/operators.c vectors/museum/bugs.c; do
    [ -f "$file" ] || continue
    for label in $(grep -oE '"[a-z_0-9]+\.[a-z0-9_]+\.[0-9]+"' "$file" | tr -d '"' | sort -u); do
        no_rule "$label" && { echo "spec-check: $file: no rule $label in spec/" >&2; status=1; }
    done
done
# Labels in the comments of fast/; what follows a dot is the end of a tensor's name instead.
for place in $(awk '
    FNR == 1 { inside = 0 }
    {
        line = $0; comment = ""
        while (line != "") {
            if (!inside) {
                if (!match(line, /\/\*|\/\//)) break
                if (substr(line, RSTART, 2) == "//") { comment = comment " " substr(line, RSTART); break }
                line = substr(line, RSTART + 2); inside = 1
            }
            if (match(line, /\*\//)) {
                comment = comment " " substr(line, 1, RSTART - 1)
                line = substr(line, RSTART + 2); inside = 0
            } else { comment = comment " " line; line = "" }
        }
        comment = " " comment
        while (match(comment, /[^a-z0-9_.][a-z_][a-z0-9_]*\.[a-z0-9_]+\.[0-9]+/)) {
            print FILENAME ":" FNR ":" substr(comment, RSTART + 1, RLENGTH - 1)
            comment = substr(comment, RSTART + RLENGTH)
        }
    }' $(find fast -name '*.[ch]' | sort)); do
    label=${place##*:}
    no_rule "$label" && { echo "spec-check: ${place%:*}: no rule $label in spec/" >&2; status=1; }
done
# Every operator is a chapter.
for file in ref/*.c fast/*.c fast/*_lanes.h fast/x86/*; do
    stem=${file##*/} stem=${stem%.[ch]}
    case $file in
    fast/*_lanes.h | fast/*_portable.c | fast/x86/*) stem=${stem%_*} ;;
    esac
    case $file:$stem in
    ref/*:path | ref/*:operators | fast/*:path | fast/*:operators) continue ;;
    fast/*:isa | fast/*:pool | fast/*:memory | fast/*:limits | fast/*:profile | fast/*:fill) continue ;;
    fast/x86/*:tiles | fast/x86/*:bf16) continue ;;
    esac
    [ -f "spec/$stem.md" ] || { echo "spec-check: $file has no chapter" >&2; status=1; }
done
exit $status
