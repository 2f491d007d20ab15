"""The tables that bench-serve ends with."""

import statistics
import sys

import serveworks
from contenders import CONTENDERS


def show(kind, result):
    """Prints seconds on ext4, the others' ratios to it, and what became of the targets."""
    if result["works"]:
        show_works(kind, result["works"])
    show_pull(kind, result["pull"])
    show_memory(result["memory"])
    sys.stdout.flush()


def show_works(kind, found):
    """One line a work and mode."""
    works = {work.name: work for work in serveworks.WORKS}
    samples = [seconds for modes in found.values() for seconds in modes.values()]
    names = [name for name in CONTENDERS if any(name in seconds for seconds in samples)]
    others = [name for name in names if name != "ext4"]
    pairs = [name for name in ("peel-rw", "peel-again") if name in names]
    rounds = sorted({len(all) for seconds in samples for all in seconds.values()})
    counted = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    print(f"\n## {kind}: medians of {counted} rounds, times the seconds of ext4\n")
    heads = "".join(f" {name} / overlay |" for name in pairs)
    print(f"| work | | ext4, s | {' | '.join(others)} |{heads} target | |")
    print(f"| --- | --- | --: |{' --: |' * (len(others) + len(pairs))} --- | --- |")
    for work, modes in found.items():
        for mode, seconds in modes.items():
            medians = {name: statistics.median(all) for name, all in seconds.items()}
            base = medians.get("ext4")
            cells = [ratio(medians, name, "ext4") for name in others]
            goal = verdict(works[work].targets.get(mode), medians)
            print(f"| {work} | {mode} | {base:.4f} | " if base else f"| {work} | {mode} | | ", end="")
            cells += [ratio(medians, name, "overlay") for name in pairs]
            print(f"{' | '.join(cells)} | {goal} |")


def ratio(medians, name, rival):
    """How many times as long, as text; where one is missing, nothing."""
    if name not in medians or rival not in medians:
        return ""
    return f"{medians[name] / medians[rival]:.2f}"


def verdict(target, medians):
    """The last two columns."""
    if target is None or any(name not in medians for name in target[:2]):
        return "|"
    name, rival, most = target
    met = medians[name] <= most * medians[rival]
    return f"{name} ≤ {most:.2f} × {rival} | {'met' if met else '**missed**'}"


def show_pull(kind, pulls):
    """Seconds of each stage."""
    if len(pulls) < 2:
        return
    stages = list(next(iter(pulls.values()))[0])
    medians = {name: {stage: statistics.median(one[stage] for one in all) for stage in stages}
               for name, all in pulls.items()}
    print(f"\n| pull and first read of {kind} | {' | '.join(f'{stage}, s' for stage in stages)} |")
    print(f"| --- |{' --: |' * len(stages)}")
    for name, seconds in medians.items():
        print(f"| {name} | {' | '.join(f'{seconds[stage]:.3f}' for stage in stages)} |")
    found = medians["peel"]["all"] / medians["containerd"]["all"]
    print(f"\npull and first read of every file: peel takes {found:.2f} × containerd, target 0.50: "
          f"{'met' if found <= 0.5 else '**missed**'}")


def show_memory(memory):
    """The worker's memory after each work, the largest of all rounds."""
    if not memory:
        return
    print("\n| peel's worker after | RssAnon + RssShmem, MiB | peak with files, MiB | CPU s since its start |")
    print("| --- | --: | --: | --: |")
    for work, contenders in memory.items():
        all = [one for list in contenders.values() for one in list]
        rss, peak = (max(one[name] for one in all) for name in ("rss_mib", "peak_mib"))
        print(f"| {work} | {rss:.1f} | {peak:.1f} | {statistics.median(one['cpu_seconds'] for one in all):.2f} |")
    print()
