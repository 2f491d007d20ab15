"""Rows of the fault matrix: files that are not what they were."""

import json
import os

from faultfield import Daemon, Layout, compare, content, drop_caches, eventually, kill, mounted
from faultkill import inspect


class Files:
    """One image, small, mounted; and every file that it is made of."""

    def __init__(self, folder, peel):
        self.peel, self.mount = peel, folder / "m"
        self.layout = Layout(folder / "layout")
        small = {f"d{n % 3}/f{n}": content(n, 9000) for n in range(60)}
        self.reference = self.layout.add("flip", small, {"big": content(77, 700_000)}, {"d1/f1": b"changed"})
        peel.mount(self.reference, self.mount)
        known = inspect(peel, self.reference)
        below = lambda kind, digest: peel.root / kind / digest.replace(":", "-")
        blob = lambda digest: peel.root / "content/blobs" / digest.replace(":", "/")
        self.kinds = {
            "blob": [blob(layer["digest"]) for layer in known["layers"]],
            "document": [blob(known[name]["digest"]) for name in ("manifest", "config")],
            "index": [below("layers", layer["diff_id"]) for layer in known["layers"]],
            "tree": [below("trees", known["chain_id"])],
        }
        self.records = self.state()

    def state(self):
        """Everything that the metadata says."""
        mounts = [{k: v for k, v in m.items() if k != "id"} for m in self.peel.json("mounts")]
        return json.dumps([self.peel.json("images"), mounts, self.peel.json("snapshots", "ls")], sort_keys=True)

    def metadata(self):
        """Files of the metadata; what is laid out as spare space holds nothing."""
        found = (self.peel.root / "metadata").rglob("*")
        return sorted(p for p in found if p.is_file() and p.name not in ("spare", "lock") and p.stat().st_size)

    def read(self, row):
        """Reads all of the image anew; returns how many files gave an error."""
        drop_caches()
        errors, wrong = [], []
        compare(self.mount, self.layout.files["flip"], errors, wrong)
        row.wrong += len(wrong)
        return len(errors)

    def restart(self):
        worker = self.peel.worker()
        kill(worker)
        self.peel.next_worker(worker)

    def scrub(self):
        """What a scrub finds; everything it finds must be mended."""
        ran = self.peel.try_("scrub", "--json")
        if ran.returncode not in (0, 5):
            return {"found": 0, "left": 1, "findings": [{"problem": ran.stderr}]}
        return json.loads(ran.stdout)


def flip_bit(path, chance):
    """Flips a random bit in place, as a disk does."""
    with open(path, "r+b", buffering=0) as file:
        at = chance.randrange(os.fstat(file.fileno()).st_size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))


def flips(row, folder, chance):
    """a bit flips in a blob, document, index, tree or the metadata, 100 each; half are read first"""
    row.errors_allowed = True
    found = {}
    with Daemon(folder / "peel") as peel:
        files = Files(folder, peel)
        for kind, paths in files.kinds.items():
            detected = 0
            for number in range(row.times(100)):
                path = chance.choice(paths)
                before = path.read_bytes()
                flip_bit(path, chance)
                row.injected += 1
                seen = 0
                # An open index is checked by scrub alone, a file that is opened at once
                if number % 2 and kind != "document":
                    files.restart()
                    seen = files.read(row)
                    row.errors += seen
                scrub = files.scrub()
                mended_by_reading = kind == "blob" and number % 2 and path.read_bytes() == before
                detected += bool(scrub["found"] or mended_by_reading)
                row.require(scrub["left"] == 0, f"{kind}: not mended: {scrub['findings'][:1]}")
                row.require(path.read_bytes() == before, f"{kind}: other bytes than before after mending")
                row.require(files.read(row) == 0, f"{kind}: not served after mending")
            found[kind] = f"{detected} of {row.times(100)}"
            row.require(detected == row.times(100), f"{kind}: {row.times(100) - detected} flips not detected")
        found["metadata"] = metadata_flips(row, files, chance)
    row.remarks.append("found: " + ", ".join(f"{kind} {text}" for kind, text in found.items()))
    row.remarks.append("errors are of reads before the scrub, nothing was read wrong")


def metadata_flips(row, files, chance):
    """Some bytes of the database are not in use: a flip there changes no record."""
    detected = idle = 0
    for number in range(row.times(100)):
        path = chance.choice(files.metadata())
        files.peel.try_("daemon", "reload")  # so that the export is up to date
        path = path if path.exists() else chance.choice(files.metadata())
        flip_bit(path, chance)
        row.injected += 1
        if number % 2:
            files.restart()
        scrub = files.scrub()
        named = [finding["what"] for finding in scrub["findings"] if "what" in finding]
        restarts = "db" in named
        log = (files.peel.state / "peel.log").read_text(errors="replace")
        # The worker that was started upon the flip may have found it before the scrub
        told = log.count("metadata was damaged") + log.count("metadata lost") + log.count("damaged number") + \
            log.count("export is damaged")
        if scrub["found"] or told > metadata_flips.told:
            detected += 1
        else:
            idle += 1
        if restarts:
            eventually("the metadata is restored", lambda: files.peel.try_("images").returncode == 0)
        metadata_flips.told = told
        files.restart()
        row.require(scrub["left"] == 0, f"metadata: not mended: {scrub['findings'][:1]}")
        row.require(files.state() == files.records, f"metadata: records differ after a flip in {path.name}")
        row.require(files.read(row) == 0, "metadata: not served")
        log = (files.peel.state / "peel.log").read_text(errors="replace")
        metadata_flips.told = log.count("metadata was damaged") + log.count("metadata lost") + \
            log.count("damaged number") + log.count("export is damaged")
    return f"{detected} of {row.times(100)} ({idle} in bytes that hold nothing: no record changed)"


metadata_flips.told = 0


def truncated(row, folder, chance):
    """a blob, index or tree is cut short under a live mount, 10 each; another image is under load"""
    row.errors_allowed = True
    with mounted(folder, pulls=0) as (peel, load, *_), load:
        inner = folder / "cut"
        inner.mkdir()
        files = Files(inner, peel)
        for kind, paths in files.kinds.items():
            for _ in range(row.times(10)):
                path = chance.choice(paths)
                before = path.read_bytes()
                os.truncate(path, chance.randrange(len(before)))
                row.injected += 1
                row.errors += files.read(row)
                eventually("a worker answers", lambda: peel.try_("status").returncode == 0)
                scrub = files.scrub()
                mended = path.read_bytes() == before
                row.require(scrub["left"] == 0 and mended, f"{kind}: not mended: {scrub['findings'][:1]}")
                row.require(files.read(row) == 0, f"{kind}: not served after mending")
        load.go_on()
        deaths = peel.keeper()["restarts"]
        row.require(deaths == 0, f"{deaths} workers died")
        row.remarks.append("no worker died; errors are of the image that was cut alone")
        row.require(not load.errors, f"{len(load.errors)} errors in the other image")
    row.take(load)


def power_cut(row, folder, chance):
    """the disk as it is at a random moment of pulls, mounts and removals: 30 power cuts"""
    import faultdisk
    with faultdisk.Disk(folder, 500 << 20) as disk:
        layout = Layout(folder / "layout")
        tags = [f"t{n}" for n in range(6)]
        references = {tag: layout.add(tag, {f"{tag}/{m}": content(hash_of(tag) + m, 150_000) for m in range(5)})
                      for tag in tags}
        cuts = []
        with Daemon(folder / "peel", root=disk.mount / "root") as peel:
            writer = faultdisk.Writer(peel, references, folder / "targets", chance)
            with writer:
                for number in range(row.times(30)):
                    writer.wait(chance.uniform(0.05, 0.5))
                    copy = folder / f"cut{number}.img"
                    known = disk.cut(copy, writer)
                    cuts.append((copy, known))
                    row.injected += 1
            row.remarks.append(f"{writer.count} changes made meanwhile")
        lost = 0
        for number, (copy, known) in enumerate(cuts):
            lost += faultdisk.after_cut(row, folder / f"after{number}", copy, known, layout, references)
            copy.unlink()
        row.remarks.append(f"{lost} acknowledged changes lost")
        row.require(lost == 0, f"{lost} acknowledged changes lost")


def hash_of(tag):
    return sum(tag.encode()) * 1000


ROWS = {"flips": flips, "truncated": truncated, "power-cut": power_cut}
