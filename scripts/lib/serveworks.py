"""The works of bench-serve: programs that use a tree, the same for every contender.

A work is run with the tree as its current directory. Where it starts a program out
of the tree itself, that is by chroot or by runc.
"""

import json
import os
import pathlib
import stat
import subprocess
import tempfile

import serveimages
from shell import SYSTEM_PATH, run

SMALL_KIB = 32
KNOWN_NAMES = 20_000
READS = {"cold": 400, "warm": 100_000}  # of 4 KiB, in all
ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"}

NODE = """\
require('/opt/app/main.js');
const path = '/opt/app/node_modules/';
const modules = require('fs').readdirSync(path + 'core-js/modules').filter((name) => name.endsWith('.js'));
for (const name of modules) require(path + 'core-js/modules/' + name);
for (const name of ['rxjs', 'typescript', 'date-fns/locale.cjs']) require(path + name);
"""
STARTS = {
    "python": ["/usr/bin/python3", "-c", "import numpy; print(numpy.arange(10).sum())"],
    "ml": ["/usr/bin/python3", "-c", "import numpy, pandas, sklearn.linear_model, sklearn.ensemble; print(45)"],
    "node": ["/usr/bin/node", "-e", NODE],
}


class Work:
    """One work: its command, and what it is held to."""

    # Images that it makes sense for, None: all
    images = None
    modes = ("cold", "warm")
    # What must be at hand before the clock starts: run once after caches were dropped
    primer = ("true",)
    # By mode: contender, rival, largest ratio; the target of the project
    targets = {}

    def __init__(self, context):
        self.context = context

    def command(self, contender):
        raise NotImplementedError

    def time(self, contender, mode, timed):
        """Seconds; `timed` runs a command in the tree and gives its seconds."""
        return timed(self.command(contender), contender.root)


class Walk(Work):
    name, primer = "walk", ("find", "/dev/null", "-printf", "%s %m %U\n")
    targets = {"cold": ("peel", "ext4", 0.9), "warm": ("peel", "ext4", 1.05)}

    def command(self, contender):
        return ["find", ".", "-printf", "%s %m %U\n"]


class ReadAll(Work):
    name, primer = "read-all", ("sh", "-c", "find /dev/null -print0 | xargs -0 cat")
    targets = {"cold": ("peel", "ext4", 0.8)}
    condition = ""

    def command(self, contender):
        return ["sh", "-c", f"find . -type f {self.condition} -print0 | xargs -0 -n 1000 cat >/dev/null"]


class ReadSmall(ReadAll):
    name, condition = "read-small", f"-size -{SMALL_KIB + 1}k"
    targets = {"warm": ("peel", "ext4", 1.15)}


class ReadShuffled(Work):
    """All files in an order that suits nobody."""

    name, primer = "read-shuffled", ("sh", "-c", "printf /dev/null | xargs -0 cat")

    def command(self, contender):
        return ["sh", "-c", f"xargs -0 -n 1000 cat <{self.context.list('shuffled')} >/dev/null"]


class Sequential(Work):
    name, primer = "sequential", ("dd", "if=/dev/null", "of=/dev/null")
    targets = {"warm": ("peel", "ext4", 1.6)}

    def command(self, contender):
        return ["dd", f"if={self.context.largest}", "of=/dev/null", "bs=1M", "status=none"]


class Random(Work):
    """4 KiB reads at the same offsets for all; the seconds are those that fio counts."""

    name, jobs, images = "random-1", 1, ("tree", "ml")

    def time(self, contender, mode, timed):
        reads = READS[mode] // self.jobs
        done = subprocess.run(
            ["fio", "--name=random", f"--filename={self.context.largest}", "--rw=randread", "--bs=4k", "--readonly",
             "--allow_file_create=0", "--ioengine=psync", "--thread", f"--numjobs={self.jobs}", "--randrepeat=1",
             "--allrandrepeat=1", "--norandommap", f"--number_ios={reads}", "--invalidate=0", "--fadvise_hint=0",
             "--output-format=json"],
            cwd=contender.root, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        jobs = json.loads(done.stdout)["jobs"]
        return max(job["read"]["lat_ns"]["mean"] * job["read"]["lat_ns"]["N"] for job in jobs) / 1e9


class Random4(Random):
    name, jobs = "random-4", 4


class Lstat(Work):
    """What `git status` asks of a file system."""

    name, list, primer = "lstat", "known", ("perl", "-0", "-ne", "chomp; lstat", "/dev/null")

    def command(self, contender):
        return ["perl", "-0", "-ne", "chomp; lstat", self.context.list(self.list)]


class LstatMissing(Lstat):
    name, list = "lstat-missing", "missing"


class Deep(Lstat):
    """Names 20 folders deep."""

    name, list, images = "deep", "deep", ("tree",)


class Chroot(Work):
    """Start of a program, without runc."""

    name, images, primer = "start-chroot", tuple(STARTS), ("chroot", "/", "/bin/true")

    def command(self, contender):
        return ["env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items()),
                "chroot", contender.root, *STARTS[self.context.kind]]


class Runc(Work):
    """Start of a container, runc's own time included."""

    name, images, primer = "start-runc", tuple(STARTS), ("runc", "--version")
    targets = {"cold": ("peel-rw", "overlay", 1.0), "warm": ("peel-rw", "overlay", 1.05)}

    def command(self, contender):
        return ["runc", "--root", self.context.folder / "runc", "run", "--bundle", self.context.bundle(contender),
                f"bench-serve-{os.getpid()}"]


WORKS = [Walk, ReadAll, ReadSmall, ReadShuffled, Sequential, Random, Random4, Lstat, LstatMissing, Deep, Chroot, Runc]


def names():
    """Of all works, the pull last."""
    return [work.name for work in WORKS] + ["pull"]


class Context:
    """What works know of an image: lists of its names, its biggest file, bundles."""

    def __init__(self, kind, reference_tree, folder):
        self.kind = kind
        self.folder = folder
        self.tree = reference_tree
        self._lists = {}
        self._largest = None

    @property
    def largest(self):
        if self._largest is None:
            self._largest = serveimages.largest(self.tree)
        return self._largest

    def list(self, name):
        """A file of names, each followed by a zero byte."""
        if name not in self._lists:
            path = self.folder / f"list-{self.kind}-{name}"
            path.write_bytes(b"".join(os.fsencode(each) + b"\0" for each in getattr(self, f"_{name}")()))
            self._lists[name] = path
        return self._lists[name]

    def _known(self):
        found = serveimages.names(self.tree)
        return found[:: max(1, len(found) // KNOWN_NAMES)][:KNOWN_NAMES]

    def _missing(self):
        return [f"{name}.none" for name in self._known()]

    def _deep(self):
        found = serveimages.names(self.tree / "deep")
        return [f"deep/{name}" for name in found if name.count("/") >= serveimages.DEPTH - 1] * 10

    def _shuffled(self):
        regular = [name for name in serveimages.names(self.tree) if stat.S_ISREG(os.lstat(self.tree / name).st_mode)]
        return serveimages.shuffled(regular)

    def bundle(self, contender):
        """A runc bundle whose rootfs is the contender's tree."""
        folder = self.folder / f"bundle-{self.kind}-{contender.name}"
        if not folder.exists():
            folder.mkdir()
            with tempfile.TemporaryDirectory(dir=self.folder) as work:
                run("runc", "spec", cwd=work)
                config = json.loads(pathlib.Path(work, "config.json").read_text())
            config["process"].update(terminal=False, args=STARTS[self.kind],
                                     env=[f"{name}={value}" for name, value in ENVIRONMENT.items()])
            config["root"] = {"path": str(contender.root), "readonly": True}
            (folder / "config.json").write_text(json.dumps(config))
        return folder


def select(listed):
    """Works by name; all where none is named."""
    wanted = [name for name in listed.split(",") if name]
    return [work for work in WORKS if not wanted or work.name in wanted], not wanted or "pull" in wanted
