"""What bench-serve compares: the same tree served in several ways, all from loop files of one disk."""

import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import time

import field
from shell import Failure, note, run

MS_RDONLY = 1
RESTARTS_WITHIN = 30  # seconds
# Beyond this many kills the keeper waits before it starts the next worker
KILLS = 2


class Extracted:
    """The tree on ext4, as `umoci unpack` makes it."""

    name = "ext4"
    # Has to have done a work once before it does so cold
    learns = False

    def __init__(self, stack, place):
        self.root = place.extracted / place.tag / "rootfs"
        if not self.root.exists():
            note(f"extracting {place.kind}")
            unpacked = place.extracted / f"{place.tag}.partial"
            shutil.rmtree(unpacked, ignore_errors=True)
            run("umoci", "unpack", "--image", f"{place.layout}:latest", unpacked)
            unpacked.rename(self.root.parent)
            os.sync()

    def restart(self):
        """Nothing runs."""

    def memory(self):
        """No process serves."""


class Overlay(Extracted):
    """A kernel overlay, the extracted tree its lower."""

    name = "overlay"

    def __init__(self, stack, place):
        lower = place.extracted / place.tag / "rootfs"
        parts = pathlib.Path(place.extracted / f"{place.tag}-overlay")
        shutil.rmtree(parts, ignore_errors=True)
        for part in ("upper", "work"):
            (parts / part).mkdir(parents=True)
        self.root = place.mountpoint(self.name)
        options = f"lowerdir={lower},upperdir={parts}/upper,workdir={parts}/work,index=off"
        run("mount", "-t", "overlay", "-o", options, "overlay", self.root)
        stack.callback(unmount, self.root)


class Erofs(Extracted):
    """EROFS, file-backed where the kernel can."""

    name = "erofs"
    options = ()

    def __init__(self, stack, place):
        image = place.store / f"{place.tag}-{self.name}.img"
        if not image.exists():
            note(f"packing {place.kind} as {self.name}")
            partial = image.with_suffix(".partial")
            run("mkfs.erofs", "--quiet", *self.options, partial, place.extracted / place.tag / "rootfs")
            partial.rename(image)
            os.sync()
        self.root = place.mountpoint(self.name)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(os.fsencode(image), os.fsencode(self.root), b"erofs", MS_RDONLY, None) != 0:
            note(f"{self.name}: through a loop device: {os.strerror(ctypes.get_errno())}")
            run("mount", "-t", "erofs", "-o", "loop,ro", image, self.root)
        stack.callback(unmount, self.root)


class ErofsLz4(Erofs):
    """EROFS, compressed."""

    name = "erofs-lz4"
    options = ("-zlz4",)


class PeelBare:
    """peel's own mount, read-only."""

    name = "peel"
    flags = ()
    learns = False

    def __init__(self, stack, place):
        self.server = place.server(stack, self.learns)
        self.root = place.mountpoint(self.name)
        self.server.mount(place.reference, self.root, *self.flags)
        stack.callback(self.server.unmount, self.root)

    def restart(self):
        self.server.restart()

    def memory(self):
        return self.server.memory()


class PeelOverlay(PeelBare):
    """peel's mount below an overlay, as containers get it."""

    name = "peel-rw"
    flags = ("--rw", "--name", "bench-serve")


class PeelAgain(PeelOverlay):
    """The same, where the worker knows what the last start of the image read."""

    name = "peel-again"
    learns = True

    def learned(self):
        """The worker keeps what it has noted when it ends in order."""
        self.server.peel("daemon", "reload")


ALL = (Extracted, Overlay, Erofs, ErofsLz4, PeelBare, PeelOverlay, PeelAgain)
CONTENDERS = {each.name: each for each in ALL}


class PeelServer:
    """A peel daemon whose root lies on the store's volume, and its mounts."""

    def __init__(self, stack, place, learns):
        folder = place.store / ("peel-again" if learns else "peel")
        shutil.rmtree(folder, ignore_errors=True)
        self.peel = field.Peel(folder)
        self.peel.state = place.work / ("state-again" if learns else "state")
        # Whether a start finds what an earlier one noted would hang on the time between the two
        self.peel.environment["PEEL_NO_FOLLOW_STARTS"] = "0" if learns else "1"
        self.mounts = {}
        self.kills = 0
        stack.callback(self.stop)
        self.peel("pull", place.reference)
        self.log = self.peel.state / "peel.log"

    def mount(self, reference, target, *flags):
        self.mounts[target] = (*flags, reference, target)
        self.peel("mount", *self.mounts[target])

    def unmount(self, target):
        rest = ["--rm"] if "--rw" in self.mounts.pop(target) else []
        self.peel("umount", *rest, target)

    def stop(self):
        """Ends the daemon, if need be by signals: its mount must not outlive the volumes."""
        try:
            self.peel("daemon", "stop")
        except Failure as failure:
            note(f"while cleaning up: {failure}")
            with contextlib.suppress(Failure):
                self.peel("daemon", "stop", "--force")

    def status(self):
        return json.loads(self.peel("status", "--json"))

    def restart(self):
        """Kills the worker; the next one serves the same mounts, and has opened nothing yet."""
        if self.kills >= KILLS:
            for target in self.mounts:
                self.peel("umount", target)
            self.peel("daemon", "stop")
            for words in self.mounts.values():
                self.peel("mount", *words)
            self.kills = 0
        worker = self.status()["worker"]["pid"]
        os.kill(worker, signal.SIGKILL)
        self.kills += 1
        # Answered by the new worker, without a look at any tree
        os.statvfs(self.peel.state / "lower")
        deadline = time.monotonic() + RESTARTS_WITHIN
        while True:
            with contextlib.suppress(Failure):
                if self.status()["worker"]["pid"] != worker:
                    return
            if time.monotonic() > deadline:
                raise Failure(f"peel's worker does not come back; see {self.log}")
            time.sleep(0.02)

    def memory(self):
        """MiB of RssAnon + RssShmem, MiB at the peak, and seconds of processor time of the worker."""
        worker = self.status()["worker"]["pid"]
        lines = pathlib.Path(f"/proc/{worker}/status").read_text().splitlines()
        fields = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()}
        ticks = pathlib.Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        return {
            "rss_mib": (int(fields["RssAnon"]) + int(fields["RssShmem"])) / 1024,
            "peak_mib": int(fields["VmHWM"]) / 1024,
            "cpu_seconds": (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK"),
        }


class Place:
    """Where one image's contenders lie."""

    def __init__(self, kind, layout, tag, work, extracted, store):
        self.kind, self.layout, self.tag = kind, layout, f"{kind}-{tag}"
        self.work, self.extracted, self.store = work, extracted, store
        self.reference = f"oci:{layout}:latest"
        self._servers = {}

    def mountpoint(self, name):
        path = self.work / f"on-{name}"
        path.mkdir(exist_ok=True)
        return path

    def server(self, stack, learns=False):
        """One daemon for all of peel's contenders that follow no starts, one for the one that does."""
        if learns not in self._servers:
            self._servers[learns] = PeelServer(stack, self, learns)
        return self._servers[learns]


def unmount(path):
    """Unmounts, if need be once nobody uses it any more."""
    try:
        run("umount", path)
    except Failure as failure:
        note(f"unmounting lazily: {failure}")
        run("umount", "--lazy", path)
