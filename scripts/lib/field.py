"""What the end-to-end scripts run peel against: a scratch filesystem, a registry, peel itself."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from shell import Failure, note, run

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
REGISTRY_STARTS_WITHIN = 20  # seconds
SCRATCH_SIZE = 16 << 30  # sparse


@contextlib.contextmanager
def scratch(folder):
    """A fresh ext4 with a journal in a loop file: extracted trees have their ordinary cost there."""
    image, mounted = folder / "scratch.img", folder / "scratch"
    mounted.mkdir()
    with open(image, "wb") as file:
        file.truncate(SCRATCH_SIZE)
    run("mkfs.ext4", "-q", "-F", "-i", "8192", "-E", "lazy_itable_init=1,lazy_journal_init=1", image)
    try:
        run("mount", "-o", "loop", image, mounted)
    except Failure as failure:
        note(f"no loop mounts here, extracting onto the machine's own filesystem: {failure}")
        yield mounted
        return
    try:
        yield mounted
    finally:
        run("umount", mounted)


@contextlib.contextmanager
def workspace():
    """A temporary folder; what is still mounted in it when it goes is not deleted through."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="peel-field-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        run("rm", "--recursive", "--force", "--one-file-system", folder)


@contextlib.contextmanager
def registry(folder):
    """Debian's docker-registry on a free port of the loopback interface; gives host:port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": address},
    }
    path = folder / "registry.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    with open(folder / "registry.log", "wb") as log:
        try:
            server = subprocess.Popen(["docker-registry", "serve", path], stdout=log, stderr=log)
        except FileNotFoundError as error:
            raise Failure("docker-registry: not found\nhint: run scripts/install-deps test") from error
    try:
        _wait_for(f"http://{address}/v2/", server)
        yield address
    finally:
        server.terminate()
        server.wait()


def drop_caches():
    """Empties the page cache, and forgets names and inodes, of the whole machine."""
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


def _wait_for(url, server):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + REGISTRY_STARTS_WITHIN
    while True:
        try:
            with opener.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"docker-registry does not answer: {error}") from error
            time.sleep(0.05)


def push(layout, address, name):
    """Pushes an image layout's image with skopeo; gives its reference for peel."""
    run("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
        f"oci:{layout}:latest", f"docker://{address}/{name}:latest")
    return f"docker://{address}/{name}:latest"


class Peel:
    """A peel of its own root and state directory; its daemon ends with the `with` block."""

    def __init__(self, folder):
        default = REPOSITORY / "target/release/peel"
        self.binary = os.environ.get("PEEL", str(default))
        if not os.access(self.binary, os.X_OK):
            raise Failure(f"no peel binary: {self.binary}\nhint: cargo build --release, or name one in PEEL")
        self.root, self.state = folder / "root", folder / "state"
        self.environment = {}
        folder.mkdir(parents=True)
        self.mounts = []
        self.bundles = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        commands = [("umount", target) for target in self.mounts]
        commands += [("bundle", "rm", target) for target in self.bundles]
        for command in [*commands, ("daemon", "stop")]:
            try:
                self(*command)
            except Failure as failure:
                if kind is None:
                    raise
                # What went wrong before says more than what cannot be cleaned up after it
                note(f"while cleaning up: {failure}")

    def __call__(self, *arguments):
        return run(self.binary, "--root", self.root, "--state", self.state, *arguments, env=self.environment)

    def mount(self, reference, target):
        """Mounts read-only; unmounted at the end at the latest."""
        self("mount", reference, target)
        self.mounts.append(target)

    def umount(self, target):
        """Unmounts what `mount` mounted."""
        self.mounts.remove(target)
        self("umount", target)

    def bundle(self, reference, target, *command):
        """Makes a runc bundle."""
        self("bundle", reference, target, "--", *command)
        self.bundles.append(target)

    def remove_bundle(self, target, *options):
        """Takes a bundle away."""
        self.bundles.remove(target)
        self("bundle", "rm", *options, target)


def usage(folder):
    """Bytes on disk and inodes below a folder, on its own filesystem."""
    device = os.lstat(folder).st_dev
    seen = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        folders[:] = [name for name in folders if os.lstat(os.path.join(parent, name)).st_dev == device]
        for name in [b".", *folders, *files]:
            status = os.lstat(os.path.join(parent, name))
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values()), len(seen)


def compressed_size(layout):
    """Bytes of all layers of the one image in a layout, as they travel."""

    def blob(descriptor):
        algorithm, _, encoded = descriptor["digest"].partition(":")
        return json.loads((layout / "blobs" / algorithm / encoded).read_bytes())

    manifest = blob(json.loads((layout / "index.json").read_bytes())["manifests"][0])
    return sum(layer["size"] for layer in manifest["layers"])
