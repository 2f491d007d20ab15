"""A containerd of its own: private root, state and socket, no network, no CRI."""

import contextlib
import json
import os
import re
import subprocess
import tarfile
import time

from shell import SYSTEM_PATH, Failure, patiently, run

STARTS_WITHIN = 20  # seconds
# Go's own gzip: what unpigz says, if it is there, is another matter
ENVIRONMENT = {"PATH": SYSTEM_PATH, "CONTAINERD_DISABLE_PIGZ": "1"}
# Names that differ from run to run in what containerd says, and what stands for them
VARIABLE = [(re.compile(r"/\S*/tmpmounts/containerd-mount\d+/?"), "/"), (re.compile(r"/\S*/snapshots/\d+/fs/?"), "/"),
            (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:..."), (re.compile(r"\s+"), " ")]
# What containerd and ctr put around the reason
AROUND = re.compile(r"^ctr: |^error unpacking image: |^apply layer error for \"[^\"]*\": |^failed to extract layer sha256:\S*: |"
                    r"^mount callback failed on \S*: |^layer sha256:\.\.\. cannot be indexed: |: unknown$")
SHOWN = 200  # characters of a reason


class Refused(Exception):
    """containerd cannot unpack an image; says why."""


class Containerd:
    """A running daemon; `folder` has its state, `store` is where it unpacks."""

    def __init__(self, folder, store, cri=None):
        self.folder = folder
        self.store = store
        # The snapshotter that CRI uses, and the socket of peel's daemon
        self.cri = cri
        self.socket = folder / "containerd.sock"
        self.server = None

    def __enter__(self):
        config = self.folder / "config.toml"
        plugins = [*([] if self.cri else ["grpc.v1.cri"]), "snapshotter.v1.aufs", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper",
                   "snapshotter.v1.native", "snapshotter.v1.zfs", "internal.v1.opt", "tracing.processor.v1.otlp"]
        config.write_text(
            "version = 2\n"
            f"root = {json.dumps(str(self.store / 'containerd'))}\nstate = {json.dumps(str(self.folder / 'state'))}\n"
            f"disabled_plugins = {json.dumps(['io.containerd.' + name for name in plugins])}\n"
            f"[grpc]\naddress = {json.dumps(str(self.socket))}\n"
            f"[ttrpc]\naddress = {json.dumps(str(self.folder / 'ttrpc.sock'))}\n"
            f"{self.for_cri()}"
        )
        with open(self.folder / "containerd.log", "wb") as log:
            try:
                self.server = subprocess.Popen(["containerd", "--config", config], stdout=log, stderr=log,
                                               env={**os.environ, **ENVIRONMENT})
            except FileNotFoundError as error:
                raise Failure("containerd: not found\nhint: run scripts/install-deps test") from error
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                self("version")
                return self
            except Failure as failure:
                if self.server.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    log = (self.folder / "containerd.log").read_text(errors="replace")[-2000:]
                    raise Failure(f"containerd does not answer: {failure}\n{log}") from failure
                time.sleep(0.05)

    def for_cri(self):
        """The part of the configuration with peel and CRI, if that is wanted."""
        if not self.cri:
            return ""
        snapshotter, socket = self.cri
        return (
            f"[proxy_plugins.peel]\ntype = \"snapshot\"\naddress = {json.dumps(str(socket))}\n"
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n"
            f"snapshotter = {json.dumps(snapshotter)}\ndisable_snapshot_annotations = false\n"
        )

    def __exit__(self, *_):
        self.server.terminate()
        self.server.wait()

    def __call__(self, *arguments):
        return run("ctr", "--address", self.socket, *arguments).decode(errors="replace")

    def version(self):
        """The daemon's version."""
        return re.search(r"Server:\s+Version:\s*(\S+)", self("version"))[1]

    def load(self, layout):
        """Imports all images of an OCI layout, without unpacking them."""
        archive = self.folder / "import.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(layout, arcname=".")
        self("images", "import", "--no-unpack", archive)
        archive.unlink()

    @contextlib.contextmanager
    def mounted(self, image, target):
        """Unpacks an image and mounts a read-only view of it."""
        target.mkdir()
        try:
            self("images", "mount", image, target)
        except Failure as failure:
            raise Refused(in_short(str(failure).strip().splitlines()[-1])) from failure
        try:
            yield target
        finally:
            patiently(lambda: run("umount", target))


def in_short(message):
    """What is wrong, without what differs from run to run."""
    for pattern, replacement in VARIABLE:
        message = pattern.sub(replacement, message)
    while (shorter := AROUND.sub("", message)) != message:
        message = shorter
    message = message.encode("ascii", "backslashreplace").decode()
    # Long names stand in messages, what is wrong with them comes last
    return message if len(message) <= SHOWN else f"{message[:SHOWN // 4]}...{message[-SHOWN // 2:]}"
