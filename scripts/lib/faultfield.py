"""What faults are injected into: images, a registry, a daemon, and the load on its mounts."""

import atexit
import collections
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time

import field
from shell import SYSTEM_PATH, Failure, patiently, run

HERE = pathlib.Path(__file__).resolve().parent
BUSYBOX = "/bin/busybox"
READERS = 2
SETTLE = 60  # seconds that anything may take to come true
CONTAINERS = {
    "python": (["python3", "-c", "import json,ssl,hashlib;print(hashlib.sha256(json.dumps(list(range(9999))).encode())"
                ".hexdigest()[:8])"], hashlib.sha256(json.dumps(list(range(9999))).encode()).hexdigest()[:8]),
    "node": (["-e", "require('/opt/app/main.js')"], "2 2020-02-01"),
}
real_images = {}


def prepare(options):
    """Makes the real images that were asked for."""
    for kind in filter(None, options.containers.split(",")):
        if kind not in CONTAINERS:
            raise Failure(f"no such container: {kind}")
        folder = pathlib.Path(tempfile.mkdtemp(prefix="peel-faults-", dir="/var/tmp"))
        atexit.register(shutil.rmtree, folder)
        cache = ["--cache", options.cache] if options.cache else []
        run(HERE.parent / "make-image", *cache, kind, folder / kind, quiet=False)
        real_images[kind] = folder / kind


def detach_below(folder):
    """Takes away what is still mounted below a folder."""
    lines = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    mounted = [line.split(" ")[4] for line in lines if line.split(" ")[4].startswith(f"{folder}/")]
    for target in sorted(mounted, key=len, reverse=True):
        subprocess.run(["umount", "--lazy", target], stderr=subprocess.DEVNULL, check=False)


def eventually(what, holds, limit=SETTLE):
    """Waits until something holds."""
    deadline = time.monotonic() + limit
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise Failure(f"never came true: {what}")
        time.sleep(0.005)
    return found


def content(seed, size):
    """Bytes that are a bit compressible, so that a layer has blocks to enter at."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randrange(2, 12)) for _ in range(400)]
    out = bytearray()
    while len(out) < size:
        out += b"".join(chance.choices(words, k=64)) + chance.randbytes(64)
    return bytes(out[:size])


class Layout:
    """An OCI image layout whose images are made here; what their files hold is known."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.entries, self.files = [], {}

    def path(self, digest):
        return self.folder / "blobs" / digest.replace(":", "/")

    def blob(self, media_type, data):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.path(digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": digest, "size": len(data)}

    def add(self, tag, *layers, cmd=("/bin/busybox", "true")):
        """An image of layers, each a dict of names and contents."""
        known, descriptors, diff_ids = {}, [], []
        for files in layers:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for name, data in files.items():
                    member = tarfile.TarInfo(name)
                    member.size, member.mode = len(data), 0o755
                    tar.addfile(member, io.BytesIO(data))
            known.update(files)
            diff_ids.append(f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}")
            descriptors.append(self.blob("layer.v1.tar+gzip", gzip.compress(packed.getvalue(), 1, mtime=0)))
        config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": list(cmd)},
                  "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        config = self.blob("config.v1+json", json.dumps(config).encode())
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "config": config, "layers": descriptors}
        entry = self.blob("manifest.v1+json", json.dumps(manifest).encode())
        self.entries.append({**entry, "annotations": {"org.opencontainers.image.ref.name": tag}})
        self.files[tag] = known
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.entries}))
        return f"oci:{self.folder}:{tag}"

    def manifest(self, tag):
        names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in self.entries]
        return self.entries[names.index(tag)]


def busy_image(layout, tag="busy", files=150, big=5 << 20):
    """Small files, a big one, and a program to run."""
    small = {f"d{n % 10}/f{n}": content(n, 20_000) for n in range(files)}
    return layout.add(tag, {**small, "big": content(999, big)}, {"bin/busybox": pathlib.Path(BUSYBOX).read_bytes()})


class Registry:
    """Serves a layout over HTTP, and breaks connections when it is told to."""

    def __init__(self, layout):
        self.layout, self.asked = layout, collections.Counter()
        self.cut = None  # a function: size of a body to the bytes of it that are sent
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                with contextlib.suppress(OSError):
                    outer.answer(self)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_):
                """A client that was killed breaks its connection."""

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def reference(self, tag):
        return f"127.0.0.1:{self.server.server_address[1]}/faults:{tag}"

    def answer(self, request):
        *_, kind, name = request.path.split("/")
        if kind == "v2" or not name:
            return self.send(request, b"{}", "application/json")
        media_type = "application/octet-stream"
        if kind == "manifests":
            media_type = "application/vnd.oci.image.manifest.v1+json"
            name = name if ":" in name else self.layout.manifest(name)["digest"]
        self.asked[name] += 1
        return self.send(request, self.layout.path(name).read_bytes(), media_type, name)

    def send(self, request, body, media_type, digest=None):
        start = 0
        wanted = request.headers.get("Range", "")
        if wanted.startswith("bytes=") and wanted.endswith("-"):
            start = min(int(wanted[6:-1]), len(body))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Type", media_type)
        if digest:
            request.send_header("Docker-Content-Digest", digest)
        part = body[start:]
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        if self.cut and len(body) > 10_000:
            request.wfile.write(part[: self.cut(len(part))])
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
        else:
            request.wfile.write(part)


class Daemon(field.Peel):
    """A daemon that faults are injected into."""

    def __init__(self, folder, root=None, environment=None, options=()):
        super().__init__(folder)
        self.folder = folder
        self.root = root or self.root
        self.environment = {"PEEL_LOG": "info", **(environment or {})}
        self.started = subprocess.Popen(self.command("daemon", *options), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, env=self.env(), cwd="/", start_new_session=True)
        eventually("the daemon answers", lambda: self.try_("status").returncode == 0)

    def env(self):
        return {**os.environ, **self.environment}

    def command(self, *arguments):
        return [self.binary, "--root", self.root, "--state", self.state, *map(str, arguments)]

    def try_(self, *arguments, limit=120):
        """Runs a command, whatever comes of it."""
        try:
            return subprocess.run(self.command(*arguments), capture_output=True, text=True, errors="replace",
                                  stdin=subprocess.DEVNULL, timeout=limit, check=False)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"still running after {limit} s: peel {' '.join(map(str, arguments))}") from error

    def __call__(self, *arguments):
        if arguments[0] == "umount":
            return patiently(lambda: self.run(*arguments))
        return self.run(*arguments)

    def run(self, *arguments):
        """Runs a command that has to succeed; gives what it prints."""
        ran = self.try_(*arguments)
        if ran.returncode != 0:
            raise Failure(f"exit code {ran.returncode}: peel {' '.join(map(str, arguments))}: {ran.stderr.strip()}")
        return ran.stdout

    def json(self, *arguments):
        return json.loads(self(*arguments, "--json"))

    def keeper(self):
        """What the keeper says of itself; nothing where none answers."""
        for _ in range(10):
            # It waits a tenth of a second for the word, which may be too short for a busy machine
            with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as line:
                line.settimeout(2)
                line.connect(str(self.state / "keeper.sock"))
                line.sendall(b"status\n")
                return json.loads(b"".join(iter(lambda: line.recv(65536), b"")))
            time.sleep(0.02)
        return {}

    def worker(self, other_than=None):
        """The worker's process id, once there is one that answers."""
        def found():
            pid = self.keeper().get("worker")
            return pid if pid and pid != other_than else None
        pid = eventually("a worker", found)
        return pid

    def next_worker(self, before):
        """Waits until another worker answers commands."""
        self.worker(other_than=before)
        eventually("it answers", lambda: self.try_("status").returncode == 0)

    def usage(self):
        """What could leak."""
        keeper = self.keeper()
        pids = [keeper["pid"], keeper["worker"]]
        mounts = pathlib.Path("/proc/self/mountinfo").read_text().count(f" {self.folder.parent}/")
        slots = (self.root / "metadata/slots").read_text().split()[1]
        memory = self.json("stats")["memory_bytes"]["worker"]
        return {"descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids), "mounts": mounts,
                "slots": int(slots), "memory": memory["anon"] + memory["shmem"]}

    def __exit__(self, kind, *_):
        for target in [*self.mounts]:
            self.try_("umount", target)
        for target in [*self.bundles]:
            self.try_("bundle", "rm", target)
        detached = [m for m in self.mounts if os.path.ismount(m)]
        stopped = self.try_("daemon", "stop", "--force")
        for target in detached:
            subprocess.run(["umount", "--lazy", target], check=False, stderr=subprocess.DEVNULL)
        if stopped.returncode != 0 and kind is None:
            raise Failure(f"the daemon did not stop: {stopped.stderr.strip()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.started.wait(10)


def drop_caches():
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def compare(mount, files, errors, wrong):
    """Reads every file anew; notes each error and each wrong byte."""
    for name, expected in files.items():
        path = f"{mount}/{name}"
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                found = b"".join(iter(lambda: os.read(descriptor, 256 << 10), b""))
            finally:
                os.close(descriptor)
        except OSError as error:
            errors.append(f"{path}: {error.strerror}")
            continue
        if found != expected:
            wrong.append(f"{path}: {len(found)} bytes, other than expected")


class Load:
    """Readers, walkers, containers and pulls that go on as long as the `with` block."""

    def __init__(self, peel, mounts, files, pulled=(), container=True):
        self.peel, self.mounts, self.files, self.pulled = peel, mounts, files, pulled
        self.errors, self.wrong, self.broken = [], [], 0
        self.rounds, self.done = collections.Counter(), threading.Event()
        self.threads, self.probes = [], 0
        self.containers = [("busybox", None)] if container else []
        self.containers += [(kind, folder) for kind, folder in real_images.items() if container]

    def __enter__(self):
        work = [(f"reader {n} of {mount}", self.read, mount) for mount in self.mounts for n in range(READERS)]
        work += [(f"find in {mount}", self.find, mount) for mount in self.mounts]
        work += [(f"pulls of {reference}", self.pull, reference) for reference in self.pulled]
        for kind, folder in self.containers:
            reference = f"oci:{folder}:latest" if folder else self.busybox_reference()
            command = CONTAINERS[kind][0] if folder else ["/bin/busybox", "sha256sum", "/big"]
            bundle = self.peel.folder / f"bundle-{kind}"
            self.peel.bundle(reference, bundle, *command)
            expected = CONTAINERS[kind][1] if folder else hashlib.sha256(self.files["big"]).hexdigest()
            work.append((f"container {kind}", self.contain, (kind, bundle, expected)))
        work.append(("caches", self.drop, None))
        for name, call, of in work:
            thread = threading.Thread(target=self.keep_on, args=(name, call, of), daemon=True)
            thread.start()
            self.threads.append((name, thread))
        self.go_on()
        return self

    def busybox_reference(self):
        return self.peel.json("mounts")[0]["image"]

    def __exit__(self, *_):
        self.done.set()
        for name, thread in self.threads:
            thread.join(SETTLE)
            if thread.is_alive():
                self.errors.append(f"{name}: hangs")
        for kind, _ in self.containers:
            bundle = self.peel.folder / f"bundle-{kind}"
            if bundle in self.peel.bundles:
                with contextlib.suppress(Failure):
                    self.peel.remove_bundle(bundle)

    def keep_on(self, name, call, of):
        while not self.done.is_set():
            try:
                call(of)
            except Failure as failure:
                self.errors.append(f"{name}: {failure}")
                time.sleep(0.1)
            self.rounds[name] += 1

    def go_on(self):
        """Waits until everybody has done a whole round more."""
        before = dict(self.rounds)
        names = [name for name, _ in self.threads]
        eventually("the load goes on", lambda: all(self.rounds[n] >= before.get(n, 0) + 2 for n in names), 120)

    def read(self, mount):
        compare(mount, self.files, self.errors, self.wrong)

    def find(self, mount):
        ran = subprocess.run(["find", mount, "-ls"], capture_output=True, text=True, check=False)
        if ran.returncode != 0 or ran.stderr:
            self.errors.append(f"find: {ran.stderr.strip()[:200]}")
        elif (found := ran.stdout.count("\n")) < len(self.files):
            self.wrong.append(f"find: {found} names")

    def contain(self, what):
        kind, bundle, expected = what
        name = f"peel-faults-{os.getpid()}-{kind}-{threading.get_ident()}"
        ran = subprocess.run(["runc", "run", "--bundle", bundle, name], capture_output=True, text=True,
                             check=False, stdin=subprocess.DEVNULL, env={**os.environ, "PATH": SYSTEM_PATH})
        if ran.returncode != 0:
            self.errors.append(f"container: {ran.stderr.strip()[:200]}")
        elif expected not in ran.stdout:
            self.wrong.append(f"container: {ran.stdout.strip()[:200]}")

    def pull(self, reference):
        for command in (("pull", "--quiet", reference), ("rm", reference)):
            ran = self.peel.try_(*command)
            if ran.returncode != 0:
                self.broken += 1
                time.sleep(0.05)

    def drop(self, _):
        drop_caches()
        self.done.wait(0.4)

    def answer(self):
        """Seconds until a request that only the daemon can answer is answered."""
        self.probes += 1
        started = time.monotonic()
        try:
            os.stat(f"{self.mounts[0]}/no-such-name-{self.probes}")
            self.wrong.append("a name that is not there was found")
        except FileNotFoundError:
            pass
        except OSError as error:
            self.errors.append(f"probe: {error.strerror}")
        return time.monotonic() - started


@contextlib.contextmanager
def mounted(folder, pulls=1, container=True, **options):
    """A daemon with an image mounted, read-only and writable, and the load on it."""
    layout = Layout(folder / "layout")
    reference = busy_image(layout)
    for n in range(pulls):
        layout.add(f"p{n}", {f"p{n}/{m}": content(n * 100 + m, 300_000) for m in range(5)})
    with Registry(layout) as registry, Daemon(folder / "peel", **options) as peel:
        peel.mount(reference, folder / "m")
        peel("mount", "--rw", reference, folder / "rw")
        peel.mounts.append(folder / "rw")
        pulled = [registry.reference(f"p{n}") for n in range(pulls)]
        load = Load(peel, [folder / "m", folder / "rw"], layout.files["busy"], pulled, container)
        yield peel, load, layout, registry


def kill(pid, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
