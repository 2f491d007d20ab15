"""What the daemon takes: many images, many readers, a long loop; and whether it stays within bounds."""

import concurrent.futures
import contextlib
import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import tarfile
import threading
import time

from field import Peel, drop_caches, workspace
from shell import Failure, note, run

HERE = pathlib.Path(__file__).resolve().parent
MEMORY = 40 << 20  # beside the span cache
GROWTH = 4 << 20  # between the loop's first third and its end
THREADS = 200
OWN_FILES, OWN_SIZE = 20, 40_000  # of each image
RANGE = 256 << 10  # longest read of a reader


class Images:
    """An OCI layout of many images over the layers of one."""

    def __init__(self, folder, kind, count):
        self.folder = folder
        run(HERE.parent / "make-image", kind, folder)
        index = json.loads((folder / "index.json").read_text())
        self.base = self.document(index["manifests"][0])
        self.own = []
        for number in range(count):
            index["manifests"].append(self.image(number))
        (folder / "index.json").write_text(json.dumps(index))

    def document(self, descriptor):
        return json.loads(self.path(descriptor["digest"]).read_bytes())

    def path(self, digest):
        return self.folder / "blobs" / digest.replace(":", "/")

    def blob(self, media_type, data):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(self, number):
        """An image with a layer of its own; its descriptor, tagged."""
        contents = {f"own/f{n}": random.Random(number * 1000 + n).randbytes(OWN_SIZE) for n in range(OWN_FILES)}
        self.own.append(contents)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        layer = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(packed.getvalue(), 1))
        config = self.document(self.base["config"])
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}")
        config.pop("history", None)
        config = self.blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": config, "layers": [*self.base["layers"], layer]}
        descriptor = self.blob(manifest["mediaType"], json.dumps(manifest).encode())
        return {**descriptor, "annotations": {"org.opencontainers.image.ref.name": f"v{number}"}}

    def reference(self, number):
        return f"oci:{self.folder}:v{number}"


def files_below(folder):
    """Regular files, relative, with their sizes."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path) and os.path.isfile(path):
                found.append((os.path.relpath(path, folder), os.path.getsize(path)))
    return found


class Limits:
    """One run."""

    def __init__(self, options):
        self.options = options
        self.figures = []
        self.wrong = []

    def run(self):
        with workspace() as folder, contextlib.ExitStack() as stack:
            note(f"making {self.options.images} images")
            self.images = Images(folder / "layout", self.options.image, self.options.images)
            run("umoci", "unpack", "--image", f"{folder}/layout:latest", folder / "bundle")
            self.extracted = folder / "bundle/rootfs"
            self.files = files_below(self.extracted)
            self.folder = folder
            self.peel = stack.enter_context(Peel(folder / "peel"))
            self.peel("images")  # starts the daemon
            self.take("a fresh daemon")
            self.mount_all()
            self.take(f"{self.options.images} images mounted")
            self.read_all()
            self.take("every file of one, and its own of each, read")
            self.readers()
            self.take(f"{self.options.readers} readers of random ranges")
            self.loop()
        return self.judge()

    def take(self, what):
        stats = json.loads(self.peel("stats", "--json"))
        worker, keeper = stats["memory_bytes"]["worker"], stats["memory_bytes"]["keeper"]
        own = worker["anon"] + worker["shmem"]
        self.figures.append({"what": what, "own": own, "stats": stats})
        print(f"{what:48} worker {own / 2**20:6.1f} MiB (cache {stats['cache_bytes'] / 2**20:5.1f}), "
              f"files {worker['file'] / 2**20:6.1f}, peak {worker['peak'] / 2**20:6.1f}; "
              f"keeper {(keeper['anon'] + keeper['shmem']) / 2**20:4.1f}; "
              f"{stats['descriptors']['worker']} descriptors, {stats['threads']['worker']} threads", flush=True)
        if own > MEMORY + stats["cache_capacity_bytes"]:
            self.wrong.append(f"{what}: {own} bytes are more than {MEMORY} and the cache")
        if stats["threads"]["worker"] > THREADS:
            self.wrong.append(f"{what}: {stats['threads']['worker']} threads")
        if any(stats["faults"].values()):
            self.wrong.append(f"{what}: faults: {stats['faults']}")
        return own

    def target(self, number):
        return self.folder / "mounts" / str(number)

    def mount_all(self):
        (self.folder / "mounts").mkdir()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            mounts = [pool.submit(self.peel.mount, self.images.reference(n), self.target(n))
                      for n in range(self.options.images)]
            for mount in mounts:
                mount.result()

    def read_all(self):
        run("sh", "-c", 'find "$0" -xdev -type f -exec cat {} + | wc -c', self.target(0))
        for number, contents in enumerate(self.images.own):
            for name, content in contents.items():
                if (self.target(number) / name).read_bytes() != content:
                    raise Failure(f"wrong bytes in {name} of image {number}")

    def readers(self):
        """Every reader compares ranges for a minute at most; caches are dropped every second."""
        seconds = min(60, self.options.minutes * 60)
        end, done, errors = time.monotonic() + seconds, threading.Event(), []
        reads = [0] * self.options.readers

        def reader(number):
            chance = random.Random(number)
            try:
                while time.monotonic() < end:
                    mount = chance.randrange(self.options.images)
                    self.compare(chance, mount)
                    reads[number] += 1
            except Exception as error:  # whatever it is, the run has failed
                errors.append(f"reader {number}: {error!r}")

        def drop():
            while not done.wait(1):
                drop_caches()

        threading.stack_size(256 << 10)
        threads = [threading.Thread(target=reader, args=(n,)) for n in range(self.options.readers)]
        dropper = threading.Thread(target=drop)
        for thread in [dropper, *threads]:
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        dropper.join()
        self.wrong += errors[:5]
        print(f"{'':48} {sum(reads)} ranges compared, at least {min(reads)} by each reader")

    def compare(self, chance, mount):
        if chance.random() < 0.2:
            name, content = chance.choice(list(self.images.own[mount].items()))
            start, length = chance.randrange(len(content)), chance.randrange(1, RANGE)
            expected = content[start : start + length]
        else:
            name, size = chance.choice(self.files)
            start, length = chance.randrange(size + 1), chance.randrange(1, RANGE)
            expected = self.range(self.extracted / name, start, length)
        if self.range(self.target(mount) / name, start, length) != expected:
            raise Failure(f"wrong bytes: {length} at {start} of {name} in image {mount}")

    @staticmethod
    def range(path, start, length):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)

    def loop(self):
        """Mount, read, write, unmount, drop caches."""
        started, rounds, taken = time.monotonic(), 0, []
        chance = random.Random(0)
        while (elapsed := time.monotonic() - started) < self.options.minutes * 60:
            number = chance.randrange(self.options.images)
            extra = self.folder / "mounts/extra"
            self.peel("mount", "--rw", self.images.reference(number), extra)
            for name, _ in chance.sample(self.files, 200):
                (extra / name).read_bytes()
            for _ in range(50):
                self.compare(chance, number)
            (extra / "written").write_bytes(b"x" * 4096)
            self.peel("umount", "--rm", extra)
            drop_caches()
            rounds += 1
            if not taken or elapsed - taken[-1][0] > self.options.minutes * 60 / 12:
                taken.append((elapsed, self.take(f"loop, {elapsed:4.0f} s, {rounds} rounds")))
        taken.append((time.monotonic() - started, self.take(f"loop, at its end, {rounds} rounds")))
        first = max(own for _, own in taken[: max(1, len(taken) // 3)])
        print(f"loop of {rounds} rounds in {taken[-1][0]:.0f} s: from {first / 2**20:.1f} to "
              f"{taken[-1][1] / 2**20:.1f} MiB")
        if taken[-1][1] > first + GROWTH:
            self.wrong.append(f"grew in the loop from {first} to {taken[-1][1]} bytes")

    def judge(self):
        if self.options.json:
            self.options.json.write_text(json.dumps(self.figures, indent=1))
        for wrong in self.wrong:
            note(f"out of bounds: {wrong}")
        print("within bounds" if not self.wrong else f"{len(self.wrong)} bounds broken")
        return 1 if self.wrong else 0
