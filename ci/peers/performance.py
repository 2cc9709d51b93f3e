"""performance.py RESULTS.json PERFORMANCE.md ROOFLINE.svg: what ci/peers.sh has measured, as tables and a picture.

Fills what stands between `<!-- NAME -->` and `<!-- end of NAME -->`. Where RESULTS.json is missing, or a part of
it, the text says that it has not been measured.
"""
import json
import math
import os
import sys
from html import escape

PARTS = {"llama": "A slice of three layers (ratios 0, 4, 128), {experts} experts, full head",
         "growth": "One CSA layer, {depth:,} tokens of context",
         "experts": "The routed experts of one layer alone, {experts} experts, 6 chosen, exact products"}
NOT_MEASURED = "*Not measured.*"


def number(x):
    """Three figures that count."""
    if x == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(x))))
    return "%.*f" % (digits, x)


# ---- tables ----

def about_machine(results):
    if "machine" not in results:
        return NOT_MEASURED
    here = results["machine"]
    return ("%s, %d processors, %d threads of every program, %.0f GB of memory; instructions %s." %
            (here["processor"], here["processors"], here["threads"], here["memory_bytes"] / 1e9,
             ", ".join(here["instructions"]) or "of no level that counts here"))


def comparison_row(one):
    if "ratio" not in one:
        return "| %s | %s | | | | %s | %s |" % (one["text"], one["peer"], goal(one), one["state"])
    return "| %s | %s | %s | %s | **%.2f** (%.2f to %.2f) | %s | %s |" % (
        one["text"], one["peer"], number(1e3 * one["ours"]), number(1e3 * one["theirs"]), one["ratio"],
        one["least"], one["most"], goal(one), one["state"])


def goal(one):
    if one["goal"] is None:
        return ""
    return "at most %g" % one["goal"] if one["figure"] == "time" else "at least %g" % one["goal"]


def about_part(part, answer):
    title = PARTS[part].format(experts=answer.get("experts", ""), depth=answer.get("depth", 0))
    lines = ["**%s.**" % title]
    if "counted" in answer:
        levels = {one["figures"]["ours"].get("level") for one in answer["rounds"]} - {None}
        others = [figures["other"] for one in answer["rounds"] for figures in one["figures"].values()]
        lines[0] += (" %d of %d rounds count%s; bandwidth %.1f to %.1f GB/s; other work at most %.2f processors%s." %
                     (answer["counted"], len(answer["rounds"]), ": VOID" if answer["void"] else "",
                      answer["bandwidth_least"] / 1e9, answer["bandwidth_most"] / 1e9, max(others),
                      "; ours at level " + ", ".join(sorted(levels)) if levels else ""))
    lines += ["", "| what | against | ours, ms | theirs, ms | ratio (of single rounds) | goal | |",
              "|---|---|--:|--:|--:|---|---|"]
    lines += [comparison_row(one) for one in answer["comparisons"]]
    return "\n".join(lines)


def about_peers(results):
    parts = results.get("parts", {})
    texts = [about_part(part, parts[part]) for part in PARTS if part in parts]
    return "\n\n".join(texts) if texts else NOT_MEASURED


def about_limits(bench):
    limits = bench["limits"]
    threads = [one["threads"] for one in limits["read_bytes_per_second"]]
    lines = ["| limit, median and best | %s |" % " | ".join(
        "%d thread%s" % (n, "" if n == 1 else "s") for n in threads), "|---|" + "--:|" * len(threads)]

    def row(name, rates):
        cells = " | ".join("%s / %s" % (number(one["median"] / 1e9), number(one["best"] / 1e9)) for one in rates)
        lines.append("| %s | %s |" % (name, cells))

    row("reading, GB/s", limits["read_bytes_per_second"])
    for peak in limits["peaks"]:
        unit = "GOP/s" if "int8" in peak["key"] else "GFLOP/s"
        mark = "**" if peak["key"] == limits["matrix"] else ""
        row("%s%s%s (%s), %s" % (mark, peak["name"], mark, peak["level"], unit), peak["flops_per_second"])
    return "\n".join(lines)


def by_part(run):
    """Components of all kinds of layer together: name -> sums."""
    sums = {}
    for one in run["components"] or []:
        sum_of = sums.setdefault(one["part"], {"seconds": 0, "bytes": 0, "flops": 0})
        sum_of["seconds"] += one["seconds"]
        sum_of["bytes"] += one["weight_bytes"] + one["cache_bytes"]
        sum_of["flops"] += one["flops"]
    return sums


def title_of(run):
    before = {"empty": "nothing before", "computed": "{:,} tokens before", "synthetic":
              "{:,} tokens before, their caches filled with random entries"}[run["state"]]
    what = "Prefill of %d tokens" % run["tokens_per_call"] if run["kind"] == "prefill" else "Decoding"
    return "%s, %s: %s tokens/s" % (what, before.format(run["depth"]), number(run["tokens_per_second"]))


def about_run(bench, run):
    limits = bench["limits"]
    n = [one["threads"] for one in limits["read_bytes_per_second"]].index(limits["compared_with_threads"])
    read = limits["read_bytes_per_second"][n]["median"]
    peak = next(p for p in limits["peaks"] if p["key"] == limits["matrix"])["flops_per_second"][n]["median"]
    lines = ["**%s.**" % title_of(run), "",
             "| component | ms | GB/s | of reading | GFLOP/s | of the peak |", "|---|--:|--:|--:|--:|--:|"]

    def row(name, seconds, count, flops):
        if seconds > 0:
            lines.append("| %s | %s | %s | %.0f %% | %s | %.0f %% |" % (
                name, number(1e3 * seconds), number(count / seconds / 1e9), 100 * count / seconds / read,
                number(flops / seconds / 1e9), 100 * flops / seconds / peak))

    for name, one in by_part(run).items():
        row(name, one["seconds"], one["bytes"], one["flops"])
    row("a call", run["seconds"], run["weight_bytes"] + run["cache_bytes"], run["flops"])
    return "\n".join(lines)


def about_components(results):
    if "bench" not in results:
        return NOT_MEASURED
    bench = results["bench"]
    layers = ", ".join("%d %s" % (count, kind) for kind, count in bench["layers"].items() if count)
    head = "Layers: %s; %s numerics; %s. Other work meanwhile: %.2f processors." % (
        layers, bench["numerics"], bench["level"], results.get("bench_other", 0))
    return "\n\n".join([head, about_limits(bench)] + [about_run(bench, run) for run in bench["runs"]])


def fill(path, texts):
    with open(path) as file:
        page = file.read()
    for name, text in texts.items():
        begin, end = "<!-- %s -->\n" % name, "<!-- end of %s -->" % name
        if page.count(begin) != 1 or page.count(end) != 1:
            sys.exit("%s: expected one '%s' and one '%s'" % (path, begin.strip(), end))
        before, rest = page.split(begin)
        page = before + begin + text + "\n" + rest[rest.index(end):]
    with open(path, "w") as file:
        file.write(page)


# ---- picture: log-log, FLOP a byte against FLOP a second ----

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 80, 200, 50, 60
COLOUR = {"prefill": "#b3261e", "decode": "#1f5fa8"}


class Axes:
    def __init__(self, x, y):
        self.x, self.y = [math.log10(v) for v in x], [math.log10(v) for v in y]

    def place(self, intensity, rate):
        def share(value, ends):
            return (math.log10(value) - ends[0]) / (ends[1] - ends[0])

        return (LEFT + share(intensity, self.x) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - share(rate, self.y) * (HEIGHT - TOP - BOTTOM))


def text(x, y, content, size=12, anchor="start", colour="#222", extra=""):
    return '<text x="%.1f" y="%.1f" font-size="%g" text-anchor="%s" fill="%s"%s>%s</text>' % (
        x, y, size, anchor, colour, extra, escape(content))


def line(a, b, colour="#222", width=1.0, dashes=""):
    return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%g"%s/>' % (
        *a, *b, colour, width, ' stroke-dasharray="%s"' % dashes if dashes else "")


def dots_of(bench):
    dots = []
    for run in bench["runs"]:
        if run["depth"] != 0:
            continue
        for name, one in by_part(run).items():
            if one["bytes"] > 0 and one["flops"] > 0 and one["seconds"] > 0:
                dots.append((run["kind"], name, one["flops"] / one["bytes"], one["flops"] / one["seconds"] / 1e9))
    return dots


def roofs_of(bench):
    """-> (GB/s, [(name, GFLOP/s)] from the lowest)."""
    limits = bench["limits"]
    n = [one["threads"] for one in limits["read_bytes_per_second"]].index(limits["compared_with_threads"])
    roofs = {}
    for peak in limits["peaks"]:
        if "int8" not in peak["key"] and peak["level"] != "portable":
            roofs["%s, %s" % (peak["name"], peak["level"])] = peak["flops_per_second"][n]["median"] / 1e9
    return limits["read_bytes_per_second"][n]["median"] / 1e9, sorted(roofs.items(), key=lambda roof: roof[1])


def ticked(power):
    return "{:,}".format(10 ** power) if power >= 0 else "%g" % 10 ** power


def grid(axes):
    parts = []
    low, high = (10 ** axes.x[0], 10 ** axes.y[0]), (10 ** axes.x[1], 10 ** axes.y[1])
    for power in range(math.ceil(axes.x[0]), math.floor(axes.x[1]) + 1):
        a, b = axes.place(10 ** power, low[1]), axes.place(10 ** power, high[1])
        parts += [line(a, b, "#ddd"), text(a[0], a[1] + 18, ticked(power), anchor="middle")]
    for power in range(math.ceil(axes.y[0]), math.floor(axes.y[1]) + 1):
        a, b = axes.place(low[0], 10 ** power), axes.place(high[0], 10 ** power)
        parts += [line(a, b, "#ddd"), text(a[0] - 8, a[1] + 4, ticked(power), anchor="end")]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts += [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 15, "FLOP per byte that has to be read", 13, "middle"),
              text(22, middle, "GFLOP/s", 13, "middle", extra=' transform="rotate(-90 22 %.1f)"' % middle)]
    return parts


def roof_lines(axes, read, roofs):
    parts, top = [], roofs[-1][1]
    left, right = 10 ** axes.x[0], 10 ** axes.x[1]
    parts.append(line(axes.place(left, left * read), axes.place(top / read, top), width=2))
    x, y = axes.place(0.6 * top / read, 0.6 * top)
    parts.append(text(x - 8, y, "reading: %s GB/s" % number(read), 11, "end"))
    last = HEIGHT
    for name, rate in roofs:
        a, b = axes.place(rate / read, rate), axes.place(right, rate)
        parts.append(line(a, b, width=2 if rate == top else 1, dashes="" if rate == top else "6 4"))
        last = min(b[1] + 4, last - 14)  # the names of roofs that are close to each other stay apart
        parts.append(text(b[0] + 6, last, "%s: %s" % (name, number(rate)), 11))
    return parts


def boxes_meet(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def labels(dots, axes):
    """Each name beside its dot, where it covers no other; a line leads to one that had to move away."""
    points = [axes.place(intensity, rate) for _, _, intensity, rate in dots]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    parts = []
    for (kind, name, _, _), (x, y) in sorted(zip(dots, points), key=lambda pair: pair[1][1]):
        width, place = 7 * len(name), None
        for distance in (0, 16, 32, 48, 64, 80, 96):
            for dx, dy in ((9, 4), (-9 - width, 4), (-width / 2, -10), (-width / 2, 19), (9, -8), (9, 16),
                           (-9 - width, -8), (-9 - width, 16)):
                left = x + dx + (distance if dx > 0 else -distance if dx < -width else 0)
                base = y + dy + (distance if dy > 4 else -distance if dy < 4 else 0)
                box = (left, base - 11, left + width, base + 3)
                inside = left > LEFT and left + width < WIDTH - RIGHT and base - 11 > TOP and base < HEIGHT - BOTTOM
                if inside and not any(boxes_meet(box, other) for other in taken):
                    place = place or (left, base, box, distance)
            if place:
                break
        if place is None:
            continue
        left, base, box, distance = place
        taken.append(box)
        if distance > 0:
            parts.append(line((x, y), (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])),
                              COLOUR[kind], 0.6))
        parts.append(text(left, base, name, 12, colour=COLOUR[kind]))
    return parts


def picture(results):
    body = ['<rect width="100%" height="100%" fill="#fff"/>']
    if "bench" not in results:
        body.append(text(WIDTH / 2, HEIGHT / 2, "not measured", 20, "middle"))
    else:
        bench = results["bench"]
        dots, (read, roofs) = dots_of(bench), roofs_of(bench)
        intensities, rates = [dot[2] for dot in dots], [dot[3] for dot in dots]
        axes = Axes((min(intensities) / 3, max(intensities + [roofs[-1][1] / read]) * 4),
                    (min(rates) / 3, max(roofs[-1][1], max(rates)) * 2))
        body.append(text(LEFT, 26, "Components of the pass beside the machine's limits (%s)" % bench["level"], 16))
        body += grid(axes) + roof_lines(axes, read, roofs)
        for kind, _, intensity, rate in dots:
            body.append('<circle cx="%.1f" cy="%.1f" r="5" fill="%s" stroke="%s" stroke-width="1.5"/>' % (
                *axes.place(intensity, rate), COLOUR[kind] if kind == "prefill" else "#fff", COLOUR[kind]))
        body += labels(dots, axes)
        for i, (kind, what) in enumerate((("prefill", "prefill of 512 tokens"), ("decode", "decoding"))):
            y = HEIGHT - BOTTOM - 34 + 20 * i
            body.append('<circle cx="%d" cy="%d" r="5" fill="%s" stroke="%s" stroke-width="1.5"/>' % (
                WIDTH - RIGHT + 14, y, COLOUR[kind] if kind == "prefill" else "#fff", COLOUR[kind]))
            body.append(text(WIDTH - RIGHT + 26, y + 4, what, 12))
    return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" '
            'font-family="sans-serif">\n%s\n</svg>\n' % (WIDTH, HEIGHT, WIDTH, HEIGHT, "\n".join(body)))


def main():
    source, page, svg = sys.argv[1:]
    results = {}
    if os.path.exists(source):
        with open(source) as file:
            results = json.load(file)
    fill(page, {"machine": about_machine(results), "peers": about_peers(results),
                "components": about_components(results)})
    with open(svg, "w") as file:
        file.write(picture(results))


main()
