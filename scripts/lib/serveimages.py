"""Images for bench-serve: those of make-image, and two of its own, cached beside them."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import stat
import tarfile
import tempfile

from kinds import _pip
from layout import Layout
from shell import SYSTEM_PATH, note, run

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ["python", "node", "tree", "ml"]
# Of `ml`: as data analysis has them, some 190 MB compressed
ML_PACKAGES = ["numpy>=2,<3", "pandas>=2,<3", "scikit-learn>=1,<2"]

# Of `tree`, in two layers: 100,000 small files, folders 20 deep, one big file
FOLDERS, FILES = 5_000, 20
CHAINS, DEPTH, CHAIN_FILES = 50, 20, 40
BIG = "big/data"
BIG_SIZE = 512 << 20
CHUNK = 1 << 20


def image(kind, cache, target):
    """An OCI layout of this kind as `target`."""
    if kind in ("python", "node"):
        run(HERE.parent / "make-image", "--cache", cache, kind, target, quiet=False)
        if kind == "python":
            _without_odd(target)
        return
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:12]
    ready = cache / f"bench-{kind}-{digest}"
    with open(cache / "bench-lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            for outdated in cache.glob(f"bench-{kind}-????????????"):
                shutil.rmtree(outdated)
            note(f"making {kind}")
            with tempfile.TemporaryDirectory(prefix="work-", dir=cache) as folder:
                {"tree": _tree, "ml": _ml}[kind](pathlib.Path(folder), cache).rename(ready)
        shutil.copytree(ready, target, symlinks=True)


def _without_odd(layout):
    """Hides what make-image adds for comparisons: mkfs.erofs cannot take all of it."""
    with tempfile.TemporaryDirectory() as folder:
        tar = pathlib.Path(folder, "layer.tar")
        with _writing(tar) as add:
            add("srv/.wh.odd", b"")
        run("umoci", "raw", "add-layer", "--image", f"{layout}:latest", tar)
        run("umoci", "gc", "--layout", layout)


def _ml(work, cache):
    """The python image with more packages, their bytecode compiled as pip does where they are used."""
    folder = work / "image"
    run(HERE.parent / "make-image", "--cache", cache, "python", folder)
    bundle = work / "bundle"
    run("umoci", "unpack", "--image", f"{folder}:latest", bundle)
    root = bundle / "rootfs"
    [target] = root.glob("usr/local/lib/python3.*/dist-packages")
    version = target.parent.name.removeprefix("python")
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)]
    shutil.rmtree(root / "srv/odd")
    shutil.rmtree(target)
    run(*_pip(), "install", "--quiet", "--root-user-action=ignore", "--disable-pip-version-check", "--no-compile",
        "--only-binary=:all:", f"--python-version={version}", *platforms, "--target", target, *ML_PACKAGES)
    inside = pathlib.Path("/", target.relative_to(root))
    run("/usr/sbin/chroot", root, "/usr/bin/python3", "-m", "compileall", "-q", inside, env={"PATH": SYSTEM_PATH})
    run("umoci", "repack", "--image", f"{folder}:latest", bundle)
    run("umoci", "gc", "--layout", folder)
    return folder


class _Words:
    """Text that compresses about as code does, the same in every run."""

    def __init__(self):
        self.random = random.Random(4)
        letters = "etaoinshrdlucmfwyp_(){}=;.0123"
        self.words = ["".join(self.random.choices(letters, k=self.random.randint(2, 11))) for _ in range(6000)]
        weights = [1 / (rank + 20) for rank in range(len(self.words))]
        self.text = " ".join(self.random.choices(self.words, weights, k=700_000)).encode()

    def bytes(self, size):
        start = self.random.randrange(len(self.text) - size)
        return self.text[start:start + size]

    def mixed(self, size):
        """Pieces of text between bytes that do not compress."""
        parts, length = [], 0
        while length < size:
            part = self.random.randbytes(1024) if self.random.random() < 0.5 else self.bytes(4096)
            parts.append(part)
            length += len(part)
        return b"".join(parts)[:size]


def _tree(work, _):
    layout = Layout(work / "image", work)
    words = _Words()
    tar = work / "layer.tar"
    with _writing(tar) as add:
        for number in range(FOLDERS):
            folder = f"tree/{number // 100:02}/{number % 100:02}"
            for file in range(FILES):
                add(f"{folder}/{file:02}-{number * 7919 % 5003}.txt", words.bytes(words.random.randint(100, 6000)))
        for chain in range(CHAINS):
            folder = "/".join([f"deep/{chain:02}", *(f"level-{level}" for level in range(DEPTH - 2))])
            for file in range(CHAIN_FILES):
                add(f"{folder}/{file}", b"deep\n")
    layout.add_tar(tar, "many files")
    with _writing(tar) as add:
        add(BIG, b"".join(words.mixed(CHUNK) for _ in range(BIG_SIZE // CHUNK)))
        for number in range(0, FOLDERS, 50):
            add(f"tree/{number // 100:02}/{number % 100:02}/changed.txt", b"changed above\n")
    layout.add_tar(tar, "a big file")
    tar.unlink()
    layout.finish("--config.cmd", "/none")
    return layout.folder


@contextlib.contextmanager
def _writing(path):
    """Gives a function that adds a file to a tar, its folders before it."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        seen = set()

        def add(name, content):
            parents = [str(parent) for parent in pathlib.PurePath(name).parents][-2::-1]
            for folder in [parent for parent in parents if parent not in seen]:
                seen.add(folder)
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                tar.addfile(entry)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1_700_000_000
            tar.addfile(entry, io.BytesIO(content))

        yield add


def largest(root):
    """The biggest file below a folder, as a path relative to it."""
    best = (-1, "")
    for parent, _, files in os.walk(root):
        for name in files:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                best = max(best, (status.st_size, os.path.relpath(path, root)))
    return best[1]


def names(root):
    """All names below a folder, sorted, relative to it."""
    found = []
    for parent, folders, files in os.walk(root):
        found += [os.path.relpath(os.path.join(parent, name), root) for name in [*folders, *files]]
    return sorted(found)


def shuffled(names):
    """In an order without order, the same in every run."""
    return random.Random(7).sample(names, len(names))


def tag(layout):
    """Names what an image extracts to: of its layers' contents alone."""

    def blob(descriptor):
        algorithm, _, encoded = descriptor["digest"].partition(":")
        return json.loads((layout / "blobs" / algorithm / encoded).read_bytes())

    manifest = blob(json.loads((layout / "index.json").read_bytes())["manifests"][0])
    layers = blob(manifest["config"])["rootfs"]["diff_ids"]
    return hashlib.sha256(" ".join(layers).encode()).hexdigest()[:12]
