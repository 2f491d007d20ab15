"""Rows of the fault matrix: disks that are full, read-only or broken; and a disk to cut the power of."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

from faultfield import Daemon, Layout, Load, Registry, busy_image, compare, content, drop_caches, eventually, kill
from faultkill import inspect
from shell import Failure, run


class Disk:
    """A fresh ext4 in a loop file; in memory of its own, writes to it can be made to fail."""

    def __init__(self, folder, size, memory=False):
        self.below = folder / "below"
        self.image, self.mount = self.below / "disk.img", folder / "disk"
        self.size, self.memory = size, memory

    def __enter__(self):
        self.mount.mkdir()
        self.below.mkdir()
        if self.memory:
            run("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", self.below)
        with open(self.image, "wb") as file:
            file.truncate(self.size)
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
        run("mount", "-o", "loop", self.image, self.mount)
        device = os.lstat(self.mount).st_dev
        self.stat = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
        return self

    def __exit__(self, *_):
        for mount in [self.mount, *([self.below] if self.memory else [])]:
            subprocess.run(["umount", "--lazy", mount], check=False, stderr=subprocess.DEVNULL)

    def refuse_writes(self):
        """Has every write fail to a block that was never written: there is nowhere to keep it."""
        with contextlib.suppress(OSError), open(self.below / "filler", "wb", buffering=0) as file:
            while file.write(bytes(64 << 10)):
                pass

    def again(self):
        """Unmounts, mends and mounts."""
        (self.below / "filler").unlink()
        eventually("it can be unmounted", lambda: subprocess.run(
            ["umount", self.mount], check=False, stderr=subprocess.DEVNULL).returncode == 0)
        subprocess.run(["e2fsck", "-p", "-f", self.image], check=False, stdout=subprocess.DEVNULL)
        run("mount", "-o", "loop", self.image, self.mount)

    def free(self):
        stat = os.statvfs(self.mount)
        return stat.f_bavail * stat.f_frsize

    def writes(self):
        """Sectors written so far, and requests under way."""
        fields = self.stat.read_text().split()
        return fields[6], fields[8]

    def cut(self, copy, writer):
        """Copies what has reached the disk at one moment; returns what had been acknowledged by then."""
        # Who is stopped writes nothing more: what is under way ends, and then the disk is quiet
        worker = writer.peel.worker()
        kill(worker, signal.SIGSTOP)
        try:
            known = writer.acknowledged()
            for _ in range(400):
                before = self.writes()
                run("cp", "--sparse=always", self.image, copy)
                if before == self.writes() and before[1] == "0":
                    return known
                time.sleep(0.003)
        finally:
            kill(worker, signal.SIGCONT)
        raise Failure("the disk is never quiet long enough to be copied")


class Writer:
    """Pulls, mounts, unmounts and removes, and keeps account of what was acknowledged."""

    def __init__(self, peel, references, targets, chance):
        self.peel, self.references, self.targets = peel, references, targets
        self.chance = type(chance)(chance.random())
        self.lock, self.count = threading.Lock(), 0
        # Name to whether it is there; None while nobody can say
        self.images, self.snapshots = {}, {}
        self.done, self.failure = threading.Event(), None
        targets.mkdir()

    def __enter__(self):
        self.thread = threading.Thread(target=self.work)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def wait(self, seconds):
        before = self.count
        time.sleep(seconds)
        eventually("changes go on", lambda: self.count > before or self.failure)
        if self.failure:
            raise self.failure

    def acknowledged(self):
        with self.lock:
            return dict(self.images), dict(self.snapshots)

    def change(self, table, name, there, *command):
        with self.lock:
            table[name] = None
        self.peel(*command)
        with self.lock:
            table[name] = there
            self.count += 1

    def work(self):
        try:
            while not self.done.is_set():
                self.step()
        except Failure as failure:
            self.failure = failure

    def step(self):
        """One change, whatever comes next for an image taken by chance."""
        tag, reference = self.chance.choice(list(self.references.items()))
        target, name = self.targets / tag, f"s-{tag}"
        if not self.images.get(reference):
            self.change(self.images, reference, True, "pull", "--quiet", reference)
        elif not self.snapshots.get(name):
            self.change(self.snapshots, name, True, "mount", "--rw", "--name", name, reference, target)
            self.peel("umount", target)
        else:
            self.change(self.snapshots, name, False, "snapshots", "rm", name)
            self.change(self.images, reference, False, "rm", reference)

    def there(self):
        """What is there now, by the daemon's word: images and snapshots."""
        return ({image["name"] for image in self.peel.json("images")},
                {snapshot["name"] for snapshot in self.peel.json("snapshots", "ls")})

    def lost(self):
        """Acknowledged changes that are not so; what nobody could say is known from now on."""
        lost = []
        for table, there in zip((self.images, self.snapshots), self.there(), strict=True):
            lost += [name for name, expected in table.items() if expected not in (None, name in there)]
            table.update({name: name in there for name in table})
        return lost


def after_cut(row, folder, copy, known, layout, references):
    """Starts a daemon on what was on the disk; returns how many acknowledged changes are lost."""
    folder.mkdir()
    mount, lost = folder / "disk", 0
    mount.mkdir()
    run("mount", "-o", "loop", copy, mount)
    try:
        with Daemon(folder / "peel", root=mount / "root") as peel:
            found = {image["name"] for image in peel.json("images")}
            names = {snapshot["name"] for snapshot in peel.json("snapshots", "ls")}
            for table, there in zip(known, (found, names), strict=True):
                for name, expected in table.items():
                    if expected is not None and expected != (name in there):
                        lost += 1
                        row.require(False, f"{name}: {'lost' if expected else 'back again'}")
            scrub = json.loads(peel.try_("scrub", "--json").stdout)
            row.require(scrub["left"] == 0, f"damage left: {scrub['findings'][:1]}")
            for finding in scrub["findings"]:
                row.require(False, f"damaged: {finding['kind']}: {finding['problem'][:100]}")
            errors, wrong = [], []
            for tag, reference in references.items():
                if reference in found:
                    peel.mount(reference, folder / tag)
                    compare(folder / tag, layout.files[tag], errors, wrong)
            row.errors += len(errors)
            row.wrong += len(wrong)
            ingests = list((mount / "root/content/ingest").iterdir())
            row.require(not ingests, "ingests are left")
            temporary = [p for kind in ("layers", "trees") for p in (mount / "root" / kind).glob(".tmp-*")]
            row.require(not temporary, "temporary files are left")
    finally:
        subprocess.run(["umount", "--lazy", mount], check=False, stderr=subprocess.DEVNULL)
    return lost


WRITES = ("write,pwrite64,writev,fsync,fdatasync,sync_file_range,rename,renameat2,unlink,unlinkat,rmdir,mkdir,"
          "ftruncate,fallocate,fchmod")


def crash(row, folder, chance):
    """kill -9 of the worker at a system call that writes, the n-th of a thread, 100 times"""
    layout = Layout(folder / "layout")
    reference = busy_image(layout)
    tags = [f"t{n}" for n in range(4)]
    references = {tag: layout.add(tag, {f"{tag}/{m}": content(m * 7 + int(tag[1:]), 120_000) for m in range(4)})
                  for tag in tags}
    errors, wrong = [], []
    with Daemon(folder / "peel") as peel:
        peel.mount(reference, folder / "m")
        writer = Writer(peel, references, folder / "targets", chance)
        for _ in range(row.times(100)):
            worker = peel.worker()
            number = chance.choice([chance.randrange(1, 12), chance.randrange(1, 60)])
            tracer = subprocess.Popen(
                ["strace", "--follow-forks", "--quiet=all", f"--trace={WRITES}", "--output=/dev/null",
                 f"--inject={WRITES}:signal=SIGKILL:when={number}", f"--attach={worker}"], stderr=subprocess.DEVNULL)
            try:
                for _ in range(40):
                    with contextlib.suppress(Failure):  # broken off: nobody can say what became of it
                        writer.step()
                    if peel.keeper().get("worker") != worker:
                        row.injected += 1
                        break
            finally:
                tracer.send_signal(2)
                tracer.wait()
            eventually("a worker answers", lambda: peel.try_("status").returncode == 0)
            for target in writer.targets.iterdir():
                peel.try_("umount", target)
            lost = writer.lost()
            row.require(not lost, f"lost, or back again: {lost}")
            scrub = peel.json("scrub")
            row.require(scrub["found"] == 0, f"damaged: {scrub['findings'][:1]}")
            compare(folder / "m", {"d1/f1": layout.files["busy"]["d1/f1"]}, errors, wrong)
        for tag, image in references.items():
            if writer.images.get(image):
                peel.mount(image, folder / tag)
                compare(folder / tag, layout.files[tag], errors, wrong)
        compare(folder / "m", layout.files["busy"], errors, wrong)
        row.remarks.append(f"{writer.count} changes acknowledged, none lost")
    row.errors, row.wrong = len(errors), len(wrong)


@contextlib.contextmanager
def on_a_disk(folder, size, memory=False):
    """A daemon whose root is on a disk of its own, and the load on a mount of it."""
    layout = Layout(folder / "layout")
    reference = busy_image(layout)
    with Disk(folder, size, memory) as disk, Registry(layout) as registry:
        with Daemon(folder / "peel", root=disk.mount / "root") as peel:
            peel.mount(reference, folder / "m")
            load = Load(peel, [folder / "m"], layout.files["busy"], container=False)
            yield disk, peel, load, layout, registry


def full(row, folder, chance):
    """the disk is full: pulls that do not fit, and not one byte left"""
    with on_a_disk(folder, 120 << 20) as (disk, peel, load, layout, registry), load:
        layout.add("large", {f"large{n}": chance.randbytes(25 << 20) for n in range(4)}, {"last": b"x"})
        layout.add("small", {"small": content(3, 100_000)})
        time.sleep(0.5)
        before = disk.free()
        for source in (registry.reference("large"), f"oci:{layout.folder}:large"):
            ran = peel.try_("pull", "--quiet", source)
            row.injected += 1
            said = ran.stderr
            row.require(ran.returncode == 7, f"pull of what does not fit: exit {ran.returncode}: {said[:200]}")
            row.require("available" in said and "hint: " in said, f"said: {said[:200]}")
            gone = eventually_free(disk, before)
            row.require(gone < 3 << 20, f"{gone} bytes are not free again")
        filler = disk.mount / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(b"x" * (1 << 20)):
                pass
        with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
            while file.write(b"x" * 512):
                pass
        row.injected += 1
        row.require(disk.free() < 64 << 10, f"{disk.free()} bytes left")
        ran = peel.try_("pull", "--quiet", registry.reference("small"))
        row.require(ran.returncode == 7, f"pull onto a full disk: exit {ran.returncode}: {ran.stderr[:200]}")
        row.require(peel.try_("images").returncode == 0 and peel.try_("status").returncode == 0, "commands fail")
        worker = peel.worker()
        kill(worker)
        row.answers.append(load.answer())
        eventually("a worker answers on a full disk", lambda: peel.try_("status").returncode == 0)
        load.go_on()
        filler.unlink()
        peel("pull", "--quiet", registry.reference("small"))
        peel("rm", registry.reference("small"))
        scrub = peel.json("scrub")
        row.require(scrub["found"] == 0, f"damaged: {scrub['findings'][:1]}")
        load.go_on()
    row.take(load)


def eventually_free(disk, before):
    """Bytes that stay used, once what can be freed is."""
    deadline = time.monotonic() + 10
    while (used := before - disk.free()) > 3 << 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    return used


def broken_writes(row, folder, _):
    """writes to the disk fail; then it is mended, and a daemon starts on it, 5 times"""
    for number in range(row.times(5)):
        inner = folder / str(number)
        inner.mkdir()
        with on_a_disk(inner, 100 << 20, memory=True) as (disk, peel, load, layout, registry):
            layout.add("late", {"file": content(number, 1_000_000)})
            with load:
                disk.refuse_writes()
                row.injected += 1
                ran = peel.try_("pull", "--quiet", registry.reference("late"))
                row.require(ran.returncode != 0, "a pull onto a disk that takes no write succeeds")
                row.require("error: " in ran.stderr, f"said: {ran.stderr[:200]}")
                said = ran.stderr.partition("error: ")[2].splitlines()[:1]
                row.remarks[:] = [f"a pull says: {text[:80]}" for text in said]
                load.go_on()
                worker = peel.worker()
                kill(worker)
                row.answers.append(load.answer())
                load.go_on()
            row.take(load)
            peel.mounts.remove(inner / "m")
            peel.try_("umount", inner / "m")
            subprocess.run(["umount", "--lazy", inner / "m"], check=False, stderr=subprocess.DEVNULL)
            peel.try_("daemon", "stop", "--force")
            disk.again()
            peel.mount(f"oci:{layout.folder}:busy", inner / "m")
            compare(inner / "m", layout.files["busy"], load.errors, load.wrong)
            row.take(load)
            scrub = peel.json("scrub")
            row.require(scrub["found"] == 0, f"damaged: {scrub['findings'][:1]}")
            peel("pull", "--quiet", registry.reference("late"))


def broken_reads(row, folder, _):
    """reads of a blob give EIO: its readers get that, others are served, and it passes"""
    row.errors_allowed = True
    with on_a_disk(folder, 200 << 20) as (_disk, peel, load, layout, _registry), load:
        bad = layout.add("bad", {"file": content(8, 2_000_000)})
        peel.mount(bad, folder / "bad")
        blob = peel.root / "content/blobs" / inspect(peel, bad)["layers"][0]["digest"].replace(":", "/")
        tracer = subprocess.Popen(
            ["strace", "--follow-forks", "--quiet=all", f"--trace-path={blob}", "--trace=pread64,read",
             "--inject=pread64,read:error=EIO", "--output=/dev/null", f"--attach={peel.worker()}"],
            stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            drop_caches()
            errors, wrong = [], []
            compare(folder / "bad", layout.files["bad"], errors, wrong)
            row.injected += 1
            row.errors, row.wrong = len(errors), len(wrong)
            row.require(len(errors) == 1, "a read of what cannot be read succeeds")
            row.answers.append(load.answer())
            load.go_on()
        finally:
            tracer.send_signal(2)
            tracer.wait()
        errors = []
        compare(folder / "bad", layout.files["bad"], errors, load.wrong)
        row.require(not errors, "still an error once the disk is well again")
        row.require(not load.errors, f"{len(load.errors)} errors of other readers")
    row.take(load)


ROWS = {"crash": crash, "disk-full": full, "eio-write": broken_writes, "eio-read": broken_reads}
