#!/usr/bin/env python3
"""Writes docs/conformance.md: what `dsv4 verify` found in other people's packages.

    conformance.py OUT.md [REPORT.json NOTES.json MASK_ONLY_REPORT.json]...
"""

import json
import sys
import textwrap
from pathlib import Path

HEAD = """\
# Other people's packages

What packages from PyPI make of the golden vectors of `vectors/v1`. `make third-party` installs them,
runs them (`vectors/adapters/`) and rewrites this file from what `dsv4 verify` reports; nothing in it is
written by hand.

Each operator that a package exposes runs by the package's own code, in one of three ways: a module or
function is called as it is; a module's submodules are replaced by stand-ins that give the case's values,
so that the rest of it is the operator; or a value is taken out of the middle of a call. Sequences that are
chunked or interleaved go through the package's own cache, each through one of its own. Both packages
compute the *exact* contract only: they have no quantisation of activations, so that the *released* cases
are not tried. They run in float64, requests for float32 inside them included, and are judged by the
tolerances for binary32 engines. A case that a package refuses, or an operator that it does not expose,
is skipped; an exception counts as a failure.

A diagnosis `a + b` says that the package's answer equals, within tolerance, what a model with exactly
these mistakes computes: they are exhibits of the errata museum (`vectors/museum/bugs.c`).
"""


def wrapped(text, bullet=""):
    indent = " " * len(bullet)
    return textwrap.fill(text, 104, initial_indent=bullet, subsequent_indent=indent,
                         break_long_words=False, break_on_hyphens=False)


def diagnosis_of(operator, report, notes):
    """What the failures of an operator equal, most frequent first; or why it is skipped."""
    found = {}
    for failure in report["failures"]:
        if failure["operator"] == operator["operator"]:
            word = failure["diagnosis"] or "no known mistake"
            word = f"nearly {word}" if failure["nearly"] else word
            found[word] = found.get(word, 0) + 1
    words = [f"{word} ({count})" if len(found) > 1 else word
             for word, count in sorted(found.items(), key=lambda item: -item[1])]
    if operator["skipped"] == operator["cases"]:
        reasons = {entry["reason"] for entry in notes["skipped"] if entry["operator"] == operator["operator"]}
        words.append("skipped: " + notes["absent"].get(operator["operator"], "; ".join(sorted(reasons))))
    elif operator["skipped"]:
        reasons = {entry["reason"] for entry in notes["skipped"] if entry["operator"] == operator["operator"]}
        words.append("skipped: " + "; ".join(sorted(reasons)))
    return "; ".join(words).replace("|", "\\|")


def section(report, notes, mask_only):
    yield f"\n## {notes['package']} {notes['version']}\n"
    yield wrapped(f"{report['cases']} exact cases: {report['passed']} passed, {report['failed']} failed, "
                  f"{report['skipped']} skipped. With torch {notes['torch']}, in {notes['precision']}.")
    yield "\n| operator | cases | passed | failed | skipped | diagnosis |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for operator in report["operators"]:
        yield "| {operator} | {cases} | {passed} | {failed} | {skipped} | ".format(**operator) + \
            diagnosis_of(operator, report, notes) + " |"
    yield "\n### Its mistakes\n"
    for mistake in report["mistakes"]:
        plural = "s" if mistake["failures"] != 1 else ""
        yield wrapped("**{id}** (rule {rule}): {story} {failures} failure{plural}, first in {operator}."
                      .format(plural=plural, **mistake), "- ")
    unknown = [f for f in report["failures"] if not f["diagnosis"]]
    for failure in unknown:
        yield wrapped(f"Unexplained: {failure['operator']}/{failure['case']}: {failure['message']}", "- ")
    for entry in notes["raised"]:
        yield wrapped(f"{entry['operator']}/{entry['case']} raised {entry['error']}", "- ")
    if not (report["mistakes"] or unknown or notes["raised"]):
        yield "None found."
    if notes["unshown"]:
        yield "\nSeen in its source, and shown by no vector:\n"
        yield from (wrapped(remark, "- ") for remark in notes["unshown"])
    yield "\n### How it was run\n"
    yield from (wrapped(remark, "- ") for remark in notes["remarks"])
    good = [row["operator"] for row in mask_only["operators"] if row["passed"]]
    passed, failed = mask_only["passed"], mask_only["failed"]
    yield wrapped(f"With attention_mask alone, when positions count the padding, {passed} of the "
                  f"{passed + failed} padded cases pass" + (f": {', '.join(good)}." if good else "."), "- ")


def main():
    out, files = sys.argv[1], [json.loads(Path(name).read_text()) for name in sys.argv[2:]]
    lines = [HEAD.rstrip("\n")]
    for report, notes, mask_only in zip(files[::3], files[1::3], files[2::3]):
        lines += section(report, notes, mask_only)
    part = Path(out + ".part")
    part.write_text("\n".join(lines) + "\n")
    part.replace(out)


if __name__ == "__main__":
    main()
