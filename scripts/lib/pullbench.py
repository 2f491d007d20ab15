"""Pulls in turns, and what they take: time, processor, disk."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import statistics
import sys
import time

import field
import serveimages
from containerd import Containerd
from servebench import BUSY, CACHE, Machine, volume
from servepull import warm
from shell import note

TICKS = os.sysconf("SC_CLK_TCK")
MEASURES = {
    "wall": ("wall clock, s", "{:.2f}"),
    "durable": ("until on disk, s", "{:.2f}"),
    "cpu": ("CPU, s", "{:.2f}"),
    "bytes": ("disk, MB", "{:.1f}"),
    "inodes": ("inodes", "{:.0f}"),
}


def main(options):
    """One run of the script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    figures = {"kernel": os.uname().release, "load": [], "images": {}}
    with field.workspace() as work, contextlib.ExitStack() as stack:
        stack.callback(lambda: show(figures))
        volumes = {name: stack.enter_context(volume(work, work, name)) for name in ("containerd", "peel")}
        machine = Machine(list(volumes.values()))
        address = stack.enter_context(field.registry(work))
        for kind in options.image or ["python", "node"]:
            layout = work / f"layout-{kind}"
            serveimages.image(kind, CACHE, layout)
            field.push(layout, address, kind)
            shutil.rmtree(layout)
            pulled = figures["images"].setdefault(kind, {"containerd": [], "peel": []})
            pullers = {"containerd": with_containerd, "peel": with_peel}
            for number in range(options.rounds):
                for name in list(pullers)[:: 1 if number % 2 == 0 else -1]:
                    machine.drop_caches()
                    warm(work / "registry")
                    figures["load"].append(round(os.getloadavg()[0], 2))
                    place = work / f"{kind}-{number}-{name}"
                    pulled[name].append(pullers[name](f"{address}/{kind}:latest", volumes[name], place))
                    if options.json:
                        options.json.write_text(json.dumps(figures, indent=1) + "\n")
                note(f"{kind}: round {number + 1} of {options.rounds}")


def used(mounted):
    """Bytes and inodes of a volume that are in use."""
    os.sync()
    found = os.statvfs(mounted)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def cpu(pids):
    """CPU seconds of processes, and of the children that they have waited for."""
    seconds = 0
    for pid in pids:
        # The name, which comes second, may hold spaces
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds += sum(int(field) for field in fields[11:15]) / TICKS
    return seconds


def measure(pull, pids, mounted):
    """What one pull takes; `pids` are the daemon's processes."""
    before, (bytes_before, inodes_before) = cpu(pids), used(mounted)
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    pull()
    wall = time.monotonic() - begin
    os.sync()
    durable = time.monotonic() - begin
    command = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = cpu(pids) - before + command.ru_utime - own.ru_utime + command.ru_stime - own.ru_stime
    bytes_after, inodes_after = used(mounted)
    return {
        "wall": wall,
        "durable": durable,
        "cpu": taken,
        "bytes": (bytes_after - bytes_before) / 1e6,
        "inodes": inodes_after - inodes_before,
    }


def with_containerd(image, mounted, place):
    """ctr, which unpacks to overlayfs; containerd runs already."""
    store = mounted / place.name
    place.mkdir()
    store.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, store)
        containerd = stack.enter_context(Containerd(place, store))
        pull = ("images", "pull", "--plain-http", "--snapshotter", "overlayfs", image)
        return measure(lambda: containerd(*pull), [containerd.server.pid], mounted)


def with_peel(image, mounted, place):
    """peel, whose daemon runs already."""
    store = mounted / place.name
    peel = field.Peel(store)
    place.mkdir()
    peel.state = place / "state"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, store)
        stack.enter_context(peel)
        peel("images")
        status = json.loads(peel("status", "--json"))
        pids = [status[name]["pid"] for name in ("keeper", "worker")]
        return measure(lambda: peel("pull", image), pids, mounted)


def show(figures):
    """A table an image: medians and ratios."""
    for kind, pulled in figures["images"].items():
        if not all(pulled.values()):
            continue
        rounds = min(len(runs) for runs in pulled.values())
        print(f"\n{kind}, medians of {rounds}\n")
        print("| | ctr images pull | peel pull | ratio |\n| --- | --- | --- | --- |")
        for measure_name, (title, shape) in MEASURES.items():
            theirs, ours = (statistics.median(run[measure_name] for run in pulled[name]) for name in ("containerd", "peel"))
            ratio = f"{ours / theirs:.3f}" if theirs else "-"
            print(f"| {title} | {shape.format(theirs)} | {shape.format(ours)} | {ratio} |")
    if figures["load"] and max(figures["load"]) > BUSY:
        note(f"warning: load was up to {max(figures['load']):.1f}: measure again on an idle machine")
