"""From a pull to a container's first output: peel beside overlayfs, under containerd."""

import contextlib
import pathlib
import shutil
import socket
import statistics
import threading
import time

import field
import serveimages
from containerd import Containerd
from servebench import CACHE, Machine, volume
from serveworks import STARTS
from shell import Failure, note, run

SNAPSHOTTERS = ["overlayfs", "peel"]
STAGES = ["pull", "start", "all"]
CHUNK = 64 << 10


def main(options):
    """One run of the script."""
    rates = options.rate if options.rate is not None else [0, 100]
    with field.workspace() as work, contextlib.ExitStack() as stack:
        store = stack.enter_context(volume(work, work, "store"))
        machine = Machine([store])
        registry = stack.enter_context(field.registry(work))
        for kind in options.image or ["python", "node"]:
            layout = work / kind
            serveimages.image(kind, CACHE, layout)
            field.push(layout, registry, kind)
            for rate in rates:
                with network(registry, rate) as address:
                    show(kind, rate, measure(kind, f"{address}/{kind}:latest", work, store, machine, options.rounds))


def measure(kind, image, work, store, machine, rounds):
    """Seconds by snapshotter and stage, one of each round."""
    found = {name: [] for name in SNAPSHOTTERS}
    for number in range(rounds):
        for name in SNAPSHOTTERS[:: 1 if number % 2 == 0 else -1]:
            # The registry's own disk is not the subject
            machine.drop_caches()
            run("sh", "-c", 'find "$1" -type f -exec cat {} + >/dev/null', "sh", work / "registry")
            found[name].append(once(kind, image, name, work, store))
    return found


def once(kind, image, name, work, store):
    """One pull and one start, with nothing there before."""
    folder, place = work / "containerd", store / "one"
    for path in (folder, place):
        path.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place)
        stack.callback(shutil.rmtree, folder)
        peel = field.Peel(place / "peel")
        peel.state = work / "state"
        stack.enter_context(peel)
        peel("images")
        containerd = stack.enter_context(Containerd(folder, place, (name, peel.state / "peel.sock")))
        pull = pathlib.Path(peel.binary).parent / "examples/cri-pull"
        begin = time.monotonic()
        run(pull, containerd.socket, image)
        pulled = time.monotonic()
        said = containerd("-n", "k8s.io", "run", "--rm", "--snapshotter", name, image, "first", *STARTS[kind])
        ended = time.monotonic()
        if kind == "python" and said.strip() != "45":
            raise Failure(f"the container said {said!r}, expected 45")
        # What of it is left would be in the way of unmounting
        for pulled_image in containerd("-n", "k8s.io", "images", "ls", "-q").split():
            containerd("-n", "k8s.io", "images", "rm", "--sync", pulled_image)
    return {"pull": pulled - begin, "start": ended - pulled, "all": ended - begin}


def show(kind, rate, found):
    """A table of medians."""
    shown = f"{rate} Mbit/s" if rate else "no limit"
    rounds = len(found[SNAPSHOTTERS[0]])
    print(f"\n| {kind}, {shown}, medians of {rounds} | pull, s | start, s | pull to output, s |")
    print("| --- | --: | --: | --: |")
    medians = {name: [statistics.median(one[stage] for one in all) for stage in STAGES] for name, all in found.items()}
    for name, values in medians.items():
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")
    ratios = [ours / theirs for ours, theirs in zip(medians["peel"], medians["overlayfs"])]
    print(f"| peel / overlayfs | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


@contextlib.contextmanager
def network(registry, rate):
    """An address of the registry behind a line of so many Mbit/s; 0: the registry's own."""
    if not rate:
        yield registry
        return
    line = Line(rate * 1_000_000 / 8)
    host, port = registry.split(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server, (host, int(port)), line), daemon=True).start()
        note(f"the registry behind {rate} Mbit/s")
        yield f"127.0.0.1:{server.getsockname()[1]}"


class Line:
    """What all connections together may send."""

    def __init__(self, bytes_per_second):
        self.rate = bytes_per_second
        self.free_at = time.monotonic()
        self.lock = threading.Lock()

    def send(self, size):
        """Waits until these bytes would have gone through."""
        with self.lock:
            self.free_at = max(self.free_at, time.monotonic()) + size / self.rate
            wait = self.free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def accept(server, registry, line):
    """Serves connections until the listener is closed."""
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        upstream = socket.create_connection(registry)
        for source, target, limit in ((client, upstream, None), (upstream, client, line)):
            threading.Thread(target=pump, args=(source, target, limit), daemon=True).start()


def pump(source, target, line):
    """Passes bytes on, one way."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK):
            if line:
                line.send(len(chunk))
            target.sendall(chunk)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
