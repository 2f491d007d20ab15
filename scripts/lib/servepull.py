"""From nothing to every file read: peel beside containerd's overlayfs, one local registry."""

import contextlib
import functools
import os
import shutil
import subprocess
import time

import field
from containerd import Containerd
from contenders import unmount
from shell import run

READ = "find . -type f -print0 | xargs -0 -n 1000 cat >/dev/null"


def pulls(place, rounds, machine, keep):
    """Gives `keep` each contender's seconds by stage, once a round."""
    with field.registry(place.work) as address:
        field.push(place.layout, address, place.kind)
        name = f"{address}/{place.kind}:latest"
        runs = {"containerd": with_containerd, "peel": with_peel}
        for number in range(rounds):
            turn = list(runs)[:: 1 if number % 2 == 0 else -1]
            for contender in turn:
                machine.drop_caches()
                warm(place.work / "registry")
                keep(contender, runs[contender](place, name, number))


def warm(folder):
    """The registry's own disk is not the subject."""
    run("sh", "-c", 'find "$1" -type f -exec cat {} + >/dev/null', "sh", folder)


class Stages:
    """A clock that is read after each stage."""

    def __init__(self):
        self.seconds = {}
        self.begin = self.last = time.monotonic()

    def done(self, stage):
        now = time.monotonic()
        self.seconds[stage] = now - self.last
        self.last = now

    def end(self):
        """All stages, and beside them what it takes until all is on disk."""
        self.seconds["all"] = self.last - self.begin
        os.sync()
        self.seconds["sync after"] = time.monotonic() - self.last
        return self.seconds


def with_containerd(place, image, number):
    """Its store on the volume that trees are extracted to."""
    folder, store = place.work / f"containerd-{number}", place.extracted / f"containerd-{number}"
    folder.mkdir()
    store.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, store)
        containerd = stack.enter_context(Containerd(folder, store))
        images = functools.partial(containerd, "images")

        def mount(target):
            images("mount", "--snapshotter", "overlayfs", image, target)
            stack.callback(unmount, target)

        pull = functools.partial(images, "pull", "--plain-http", "--snapshotter", "overlayfs", image)
        return staged(place, number, pull, mount)


def with_peel(place, image, number):
    """Its root on the store's volume; the daemon runs already, as containerd does."""
    folder = place.store / f"pull-{number}"
    peel = field.Peel(folder)
    peel.state = place.work / f"pull-state-{number}"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.enter_context(peel)
        peel("images")
        return staged(place, number, lambda: peel("pull", image), lambda target: peel.mount(image, target))


def staged(place, number, pull, mount):
    """Seconds of each stage of pulling, mounting and reading."""
    target = place.work / f"pulled-{number}"
    target.mkdir(exist_ok=True)
    stages = Stages()
    pull()
    stages.done("pull")
    mount(target)
    stages.done("mount")
    subprocess.run(["sh", "-c", READ], cwd=target, stdin=subprocess.DEVNULL, check=True)
    stages.done("read")
    return stages.end()
