"""Runs the works of bench-serve in turns, cold and warm, and collects seconds."""

import contextlib
import datetime
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import field
import serveimages
import serveworks
from contenders import CONTENDERS, Place, unmount
from servepull import pulls
from servetable import show
from shell import Failure, note, run

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "/var/tmp") / "peel-images"
DEFAULT_IMAGES = ["python", "node", "tree"]
# A warm run is repeated until it takes as long as this, in seconds
LONG_ENOUGH = 0.1
REPEATS_LIMIT = 50
BUSY = 2.0  # load above which figures are doubtful
# What a loop file may keep in the page cache after a drop: mkfs's own blocks are held by the mount
LEFT_CACHED = 64 << 20


def main(options):
    """One run of the script."""
    # An end by a signal cleans up, too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    works, pull = serveworks.select(options.works)
    kinds = ["python"] if options.quick else options.image or DEFAULT_IMAGES
    rounds = min(options.rounds, 2) if options.quick else options.rounds
    contenders = [name for name in CONTENDERS if not options.only or name in options.only.split(",")]
    results = Results(options.json, options.add)
    if not shutil.which("nydusd"):
        note("nydusd is not installed: left out")
    with field.workspace() as work, contextlib.ExitStack() as stack, spoken():
        # Also what a run that is cut short has found
        stack.callback(results.show)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        volumes = [stack.enter_context(volume(options.keep or work, work, name)) for name in ("extracted", "store")]
        machine = Machine(volumes)
        for kind in kinds:
            layout = work / kind
            serveimages.image(kind, CACHE, layout)
            place = Place(kind, layout, serveimages.tag(layout), work, *volumes)
            with contextlib.ExitStack() as mounted:
                bench(place, works, contenders, rounds, mounted, Runner(machine, results, kind))
            if pull:
                pulls(place, rounds, machine, lambda name, stages, kind=kind: results.pulled(kind, name, stages))


@contextlib.contextmanager
def spoken():
    """Prints what went wrong before cleaning up: that may fail for the same reason."""
    try:
        yield
    except Failure as failure:
        note(f"error: {failure}")
        sys.exit(1)


class Results:
    """Every figure so far, in the shape that --json writes."""

    def __init__(self, path, before):
        self.path = path
        self.figures = {"kernel": os.uname().release, "load": [], "images": {}}
        if before and before.exists():
            self.figures = json.loads(before.read_text())
        self.figures["ended"] = None

    def image(self, kind):
        empty = {"works": {}, "memory": {}, "pull": {}}
        return self.figures["images"].setdefault(kind, empty)

    def timed(self, kind, work, mode, contender, seconds):
        modes = self.image(kind)["works"].setdefault(work, {})
        modes.setdefault(mode, {}).setdefault(contender, []).append(seconds)
        self.write()

    def remembered(self, kind, work, contender, memory):
        self.image(kind)["memory"].setdefault(work, {}).setdefault(contender, []).append(memory)

    def pulled(self, kind, contender, stages):
        self.image(kind)["pull"].setdefault(contender, []).append(stages)
        self.write()

    def write(self):
        self.figures["load"].append(round(os.getloadavg()[0], 2))
        self.figures["ended"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if self.path:
            self.path.write_text(json.dumps(self.figures, indent=1) + "\n")

    def show(self):
        for kind, figures in self.figures["images"].items():
            show(kind, figures)
        load = self.figures["load"]
        if load and max(load) > BUSY:
            note(f"warning: load was up to {max(load):.1f}: measure again on an idle machine")


@contextlib.contextmanager
def volume(folder, work, name):
    """A journaled ext4 in a loop file, made where it is not there yet."""
    image, mounted = folder / f"{name}.img", work / name
    mounted.mkdir()
    if not image.exists():
        with open(image, "wb") as file:
            file.truncate(field.SCRATCH_SIZE)
        run("mkfs.ext4", "-q", "-F", "-i", "8192", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    run("mount", "-o", "loop", image, mounted)
    try:
        yield mounted
    finally:
        unmount(mounted)


class Machine:
    """Caches of the whole machine."""

    def __init__(self, volumes):
        self.files = [backing_file(mounted) for mounted in volumes]

    def drop_caches(self):
        """Empties page cache, names and inodes, the loop files' own pages included."""
        os.sync()
        # Twice: inodes go once nothing names them any more
        for _ in range(2):
            field.drop_caches()
        for file in self.files:
            left = int(run("fincore", "--noheadings", "--bytes", "--output", "RES", file))
            if left > LEFT_CACHED:
                note(f"warning: {left >> 20} MiB of {file.name} are still cached")


def backing_file(mounted):
    """The file behind a loop mount."""
    device = run("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", mounted).decode().strip()
    return pathlib.Path(run("losetup", "--noheadings", "--output", "BACK-FILE", device).decode().strip())


def bench(place, works, names, rounds, stack, runner):
    """All works on all contenders."""
    # The extracted tree is the source of others, and of the lists of names
    reference = CONTENDERS["ext4"](stack, place)
    contenders = [reference if name == "ext4" else CONTENDERS[name](stack, place) for name in names]
    context = serveworks.Context(place.kind, reference.root, place.work)
    works = [work(context) for work in works if work.images is None or place.kind in work.images]
    begin = time.monotonic()
    for number in range(rounds):
        for offset, work in enumerate(works):
            turn = (number + offset) % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                runner.visit(work, contender)
        taken = time.monotonic() - begin
        note(f"{place.kind}: round {number + 1} of {rounds} after {taken:.0f} s, load {os.getloadavg()[0]:.1f}")


class Runner:
    """Times works on one image's contenders."""

    def __init__(self, machine, results, kind):
        self.machine = machine
        self.results = results
        self.kind = kind
        self.repeats = {}

    def visit(self, work, contender):
        """One contender's turn: cold, then warm."""
        if "cold" in work.modes:
            if contender.learns:
                # A start is noted from the first read of a layer on, and what is cached is not read
                contender.restart()
                self.machine.drop_caches()
                work.time(contender, "cold", timed)
                contender.learned()
            contender.restart()
            self.machine.drop_caches()
            run(*work.primer)
            self.keep(work, "cold", contender, work.time(contender, "cold", timed))
        if "warm" in work.modes:
            first = work.time(contender, "warm", timed)
            # As often for all
            repeats = self.repeats.setdefault(work.name, min(math.ceil(LONG_ENOUGH / first), REPEATS_LIMIT))
            taken = [work.time(contender, "warm", timed) for _ in range(repeats)]
            self.keep(work, "warm", contender, sum(taken) / repeats)
        if memory := contender.memory():
            self.results.remembered(self.kind, work.name, contender.name, memory)

    def keep(self, work, mode, contender, seconds):
        self.results.timed(self.kind, work.name, mode, contender.name, seconds)


def timed(command, cwd):
    """Seconds that a command takes in a folder."""
    words = [os.fspath(word) for word in command]
    begin = time.monotonic()
    done = subprocess.run(words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, close_fds=False, check=False)
    taken = time.monotonic() - begin
    if done.returncode != 0:
        raise Failure(f"exit code {done.returncode}: {' '.join(words)[:300]}\n{done.stderr.decode(errors='replace')}")
    return taken
