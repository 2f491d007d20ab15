"""Images of one large or odd layer, and the memory and time of the worker that pulls them."""

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import threading
import time
import zlib

import field
from shell import Failure, note
from tarbytes import END, BLOCK, folder, header

PER_LAYER = 32 << 20  # bytes
PER_ENTRY = 250  # bytes
EVERY = 0.005  # seconds between two looks at the worker
MIB, GIB = 1 << 20, 1 << 30
PIECE = 16 * MIB  # what is compressed once and written again and again
FILE = 256 * MIB  # content of a file in the large layers
PER_FOLDER = 100  # entries
GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


def words(size):
    """Text-like content: words of a made-up language, the frequent ones short."""
    draw = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgk"
    known = ["".join(draw.choices(letters, k=2 + rank // 400 % 9)) for rank in range(4000)]
    weights = [1 / (rank + 2) for rank in range(len(known))]
    return " ".join(draw.choices(known, weights, k=size // 4)).encode()[:size].ljust(size, b"\n")


def large(size, piece):
    """A tar of large files, as pieces: each the bytes, and whether they are the repeated piece."""
    for number in range(max(1, round(size / FILE))):
        yield header(b"file%d" % number, b"0", size=FILE), False
        yield from itertools.repeat((piece, True), FILE // len(piece))
    yield END, False


def many(count):
    """A tar of small files in folders."""
    for number in range(count):
        parent = b"usr/share/d%03d/d%06d" % (number // PER_FOLDER // 100, number // PER_FOLDER)
        if number % PER_FOLDER == 0:
            yield folder(parent), False
        else:
            content = b"content of file %d\n" % number
            entry = header(parent + b"/file%d.txt" % number, b"0", size=len(content))
            yield entry + content.ljust(BLOCK, b"\0"), False
    yield END, False


class Gzip:
    """One gzip member, written by zlib; the piece that comes again and again is compressed once, on
    its own. To whoever reads it that makes no difference: it is one deflate stream."""

    media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    reads = "gzip -dc {} | sha256sum"

    def __init__(self, write):
        self.write, self.crc, self.len, self.packed = write, 0, 0, None
        write(GZIP_HEADER)

    def add(self, piece, is_repeated):
        """Adds the next bytes of the tar."""
        self.crc = zlib.crc32(piece, self.crc)
        self.len += len(piece)
        if not is_repeated or self.packed is None:
            packer = zlib.compressobj(6, zlib.DEFLATED, -15)
            packed = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
            self.packed = packed if is_repeated else self.packed
        self.write(self.packed if is_repeated else packed)

    def close(self):
        """Ends the member."""
        end = zlib.compressobj(6, zlib.DEFLATED, -15).flush()
        self.write(end + (self.crc).to_bytes(4, "little") + (self.len % 2**32).to_bytes(4, "little"))


class Program:
    """Another program's work: reads the tar, writes the blob."""

    def __init__(self, write, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.reader = threading.Thread(target=lambda: [write(part) for part in iter(self.part, b"")])
        self.reader.start()

    def part(self):
        return self.process.stdout.read1(MIB)

    def add(self, piece, _):
        """Adds the next bytes of the tar."""
        self.process.stdin.write(piece)

    def close(self):
        """Waits for the end."""
        self.process.stdin.close()
        self.reader.join()
        if self.process.wait() != 0:
            raise Failure(f"{self.process.args[0]} failed")


class RealGzip(Program):
    """What gzip(1) makes at its best."""

    media_type, reads = Gzip.media_type, Gzip.reads

    def __init__(self, write):
        super().__init__(write, ["gzip", "-9", "-n"])


class Zstd(Program):
    """One frame, which cannot be entered in the middle: all of it goes to the seekable copy."""

    media_type = "application/vnd.oci.image.layer.v1.tar+zstd"
    reads = "zstd -dc {} | sha256sum"

    def __init__(self, write):
        super().__init__(write, ["zstd", "-q", "-3", "-c"])


class OneBlock:
    """A gzip member of a single deflate block of literals in the fixed code: no place to resume at,
    so that all of it goes to the seekable copy. Only for text below 0x90, whose codes are 8 bits."""

    media_type, reads = Gzip.media_type, Gzip.reads
    # RFC 1951 3.2.6: literal n below 0x90 has code 0x30 + n, highest bit first
    CODES = bytes(int(f"{0x30 + n:08b}"[::-1], 2) if n < 0x90 else 0 for n in range(256))

    def __init__(self, write):
        self.write, self.crc, self.len = write, 0, 0
        self.packed, self.carry = None, 0b011  # last block, fixed code: three bits
        write(GZIP_HEADER)

    def shifted(self, piece):
        number = int.from_bytes(piece.translate(self.CODES), "little") << 3
        return number.to_bytes(len(piece) + 1, "little")

    def add(self, piece, is_repeated):
        """Adds the next bytes of the tar."""
        self.crc = zlib.crc32(piece, self.crc)
        self.len += len(piece)
        if is_repeated and self.packed is None:
            self.packed = self.shifted(piece)
        packed = bytearray(self.packed if is_repeated else self.shifted(piece))
        packed[0] |= self.carry
        self.carry = packed.pop()
        self.write(packed)

    def close(self):
        """Ends the member: the code of the block's end is seven zero bits."""
        end = bytes([self.carry, 0])
        self.write(end + self.crc.to_bytes(4, "little") + (self.len % 2**32).to_bytes(4, "little"))


# name: how it is compressed; its tar by GiB and number of entries
CASES = {
    "zeros": (Gzip, lambda gib, _: large(gib * GIB, bytes(PIECE))),
    "bomb": (RealGzip, lambda gib, _: large(gib * GIB / 5, bytes(PIECE))),
    "text": (Gzip, lambda gib, _: large(gib * GIB, words(PIECE))),
    "entries": (Gzip, lambda _, entries: many(entries)),
    "zstd": (Zstd, lambda gib, _: large(gib * GIB / 5, words(PIECE))),
    "one-block": (OneBlock, lambda gib, _: large(gib * GIB / 10, words(PIECE))),
}


class Layout:
    """An image layout of one layer, which is made as it is written."""

    def __init__(self, directory):
        self.directory = directory
        self.blobs = directory / "blobs/sha256"
        self.blobs.mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def document(self, content):
        data = json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, packer, pieces):
        """Writes the blob and the image; gives the blob's path and the length of the tar."""
        diff_id, digest, size = hashlib.sha256(), hashlib.sha256(), 0
        path = self.blobs / "blob"
        with open(path, "wb") as file:

            def write(part):
                digest.update(part)
                file.write(part)

            # Headers are collected: a block of its own for each would be no archive that exists
            packing, small = packer(write), bytearray()
            for piece, is_repeated in itertools.chain(pieces, [(b"", True)]):
                diff_id.update(piece)
                size += len(piece)
                if not is_repeated:
                    small += piece
                if small and (is_repeated or len(small) >= MIB):
                    packing.add(bytes(small), False)
                    small.clear()
                if piece and is_repeated:
                    packing.add(piece, True)
            packing.close()
        blob = path.rename(self.blobs / digest.hexdigest())
        layer = {"mediaType": packer.media_type, "digest": f"sha256:{digest.hexdigest()}", "size": blob.stat().st_size}
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        config = {"architecture": machine, "os": "linux", "config": {},
                  "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id.hexdigest()}"]}}
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **self.document(config)},
                    "layers": [layer]}
        found = {"mediaType": manifest["mediaType"], **self.document(manifest),
                 "annotations": {"org.opencontainers.image.ref.name": "latest"}}
        (self.directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [found]}))
        return blob, size


class Watch:
    """The most memory that a process had for itself while the `with` block ran, in bytes."""

    def __init__(self, pid):
        self.pid, self.peak, self.done = pid, 0, threading.Event()
        self.before = self.peak = self.now()

    def now(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            found = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", status.read(), re.MULTILINE)
        return sum(map(int, found)) * 1024

    def look(self):
        while not self.done.wait(EVERY):
            self.peak = max(self.peak, self.now())

    def __enter__(self):
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    @property
    def used(self):
        return self.peak - self.before


def main(names, gib, entries):
    """Runs the cases and prints a table; fails where one takes more than is allowed."""
    print("| layer | tar MB | blob MB | peak MiB | allowed | MB/s | other |")
    print("| --- | --: | --: | --: | --: | --: | --- |", flush=True)
    over = [name for name in names if not case(name, gib, entries)]
    if over:
        raise Failure(f"more memory than allowed: {', '.join(over)}")


def case(name, gib, entries):
    """One case; says whether it stays below what is allowed."""
    packer, tar = CASES[name]
    with field.workspace() as work, field.Peel(work / "peel") as peel:
        blob, size = Layout(work / "image").layer(packer, tar(gib, entries))
        compressed = blob.stat().st_size
        note(f"{name}: {size / 1e6:.0f} MB of tar, {compressed / 1e6:.1f} MB compressed")
        peel("images")  # starts the daemon
        worker = json.loads(peel("status", "--json"))["worker"]["pid"]
        with Watch(worker) as watch:
            seconds = timed(lambda: peel("pull", f"oci:{work / 'image'}:latest"))
        if json.loads(peel("status", "--json"))["worker"]["pid"] != worker:
            raise Failure(f"{name}: the worker did not live through the pull")
        other = packer.reads.format("BLOB")
        others = timed(lambda: subprocess.run(packer.reads.format(blob), shell=True, check=True,
                                              stdout=subprocess.DEVNULL))
    allowed = PER_LAYER + (PER_ENTRY * entries if name == "entries" else 0)
    fields = [name, f"{size / 1e6:.0f}", f"{compressed / 1e6:.1f}", f"{watch.used / MIB:.1f}", f"{allowed / MIB:.1f}",
              f"{size / seconds / 1e6:.0f}", f"{size / others / 1e6:.0f} MB/s: `{other}`".replace("|", "\\|")]
    print("| " + " | ".join(fields) + " |", flush=True)
    return watch.used <= allowed


def timed(call):
    """Seconds on the clock."""
    begin = time.monotonic()
    call()
    return time.monotonic() - begin
