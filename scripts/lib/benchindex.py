"""Runs the index's bench program and its competitors over one layer, and shows medians and ratios."""

import json
import pathlib
import resource
import statistics
import tempfile
import time

import memorybench
from field import scratch
from shell import Failure, note, run

HERE = pathlib.Path(__file__).resolve().parent
GENERATED_ENTRIES = 1_000_000
OTHERS = {
    "gzip -dc | sha256sum": "gzip -dc {file} | sha256sum",
    "pigz -dc": "pigz -dc {file} > /dev/null",
    "tar tzf": "tar tzf {file} > /dev/null",
}
EXTRACT = "tar xzf"
# name, program's figure, unit, what turns the figure to the unit
READS = [
    ("open, checks included", "open_seconds", "ms", lambda f: f["open_seconds"] * 1e3),
    ("open of the tree", "tree_open_seconds", "ms", lambda f: f["tree_open_seconds"] * 1e3),
    ("merge", "merge_seconds", "M entries/s", lambda f: f["entries"] / f["merge_seconds"] / 1e6),
    ("lookup", "lookups_per_second", "M/s", lambda f: f["lookups_per_second"] / 1e6),
    ("readdir", "readdir_entries_per_second", "M entries/s", lambda f: f["readdir_entries_per_second"] / 1e6),
    ("4 KiB from a cold span, median", "cold_read_seconds", "ms", lambda f: f["cold_read_seconds"] * 1e3),
    ("tar again", "tar_again_seconds", "MB/s", lambda f: f["tar_bytes"] / f["tar_again_seconds"] / 1e6),
]


def program():
    """The bench program, built."""
    command = ["cargo", "bench", "-q", "-p", "peel-index", "--bench", "index", "--no-run", "--message-format", "json"]
    lines = run(*command, cwd=HERE.parent.parent).decode().splitlines()
    found = [json.loads(line).get("executable") for line in lines if line.startswith("{")]
    if not (paths := [path for path in found if path]):
        raise Failure("cargo built no bench program")
    return paths[-1]


def layers_by_default(bench):
    """The largest layer of a real image, and a generated one."""
    image = bench.folder / "python"
    run(HERE.parent / "make-image", "python", image)
    yield max((image / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    tar = bench.folder / "generated.tar"
    run(bench.program, "generate", str(GENERATED_ENTRIES), tar)
    run("gzip", tar)
    yield tar.with_suffix(".tar.gz")


def closed_layers(bench, file):
    """Blobs that cannot be entered midway, all of which goes to the seekable copy: name, path and what
    else reads them. The one of zstd holds the tar of `file`."""
    frame = bench.folder / "frame.tar.zst"
    run("sh", "-c", f"gzip -dc {file} | zstd -q -3 -c > {frame}")
    yield "one frame of zstd", frame, memorybench.Zstd.reads
    block = bench.folder / "block.tar.gz"
    with open(block, "wb") as out:
        packing = memorybench.OneBlock(out.write)
        for piece, is_repeated in memorybench.large(memorybench.FILE, memorybench.words(memorybench.PIECE)):
            packing.add(piece, is_repeated)
        packing.close()
    yield "one block of gzip", block, memorybench.OneBlock.reads


class Bench:
    """One run: the program and a folder for what it writes."""

    def __init__(self, folder):
        self.folder = folder
        self.program = program()

    def figures(self, *arguments):
        lines = run(self.program, *arguments).decode().splitlines()
        return {name: float(value) for name, value in map(str.split, lines)}

    def layer(self, file, rounds):
        """Runs everything in turns and prints the tables."""
        index = self.folder / "index"
        shell = {name: ["sh", "-c", command.format(file=file)] for name, command in OTHERS.items()}
        mine = {
            "pipeline, 1 thread": ("pipeline", "1", file, index),
            "pipeline, threads": ("pipeline", "2", file, index),
            "decoding alone": ("inflate", file),
            "reads": ("read", file, index),
        }
        # The index has to be there before it is read
        figures = self.figures(*mine["pipeline, 1 thread"])
        seconds, seen = {}, []
        for number in range(rounds):
            names = [*shell, EXTRACT, *mine]
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if name in mine:
                    begin = cpu_seconds()
                    got = self.figures(*mine[name])
                    seen.append((name, got))
                    taken = got.get("pipeline_seconds", got.get("inflate_seconds")), cpu_seconds() - begin
                elif name == EXTRACT:
                    taken = self.extract(file)
                else:
                    taken = timed(*shell[name])
                seconds.setdefault(name, []).append(taken)
            note(f"round {number + 1} of {rounds}")
        seconds.pop("reads")
        medians = {name: tuple(map(statistics.median, zip(*all))) for name, all in seconds.items()}
        self.show(file, figures, medians, seen)

    def closed(self, file, rounds):
        """Prints how fast layers are read that go to the seekable copy as a whole."""
        print("\n| closed layer | MB of tar | 1 thread, MB/s | threads, MB/s | beside | MB/s |")
        print("| --- | --: | --: | --: | --- | --: |")
        for name, blob, reads in closed_layers(self, file):
            seconds, size = {"1": [], "2": [], "other": []}, 0
            for _ in range(rounds):
                for threads in "1", "2":
                    got = self.figures("pipeline", threads, blob, self.folder / "closed")
                    seconds[threads].append(got["pipeline_seconds"])
                    size = got["tar_bytes"]
                seconds["other"].append(timed("sh", "-c", reads.format(blob))[0])
            one, two, other = (size / statistics.median(each) / 1e6 for each in seconds.values())
            escaped = reads.format("BLOB").replace("|", "\\|")
            print(f"| {name} | {size / 1e6:.0f} | {one:.0f} | {two:.0f} | `{escaped}` | {other:.0f} |", flush=True)

    def extract(self, file):
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, scratch(pathlib.Path(folder)) as target:
            return timed("tar", "xzf", file, "-C", target)

    def show(self, file, figures, seconds, seen):
        size = figures["tar_bytes"]
        rivals = [*OTHERS, EXTRACT]
        titles = " | ".join(rival.replace("|", "\\|") for rival in rivals)
        print(f"\n{file.name[:40]}: {size / 1e6:.0f} MB of tar, {file.stat().st_size / 1e6:.0f} MB compressed\n")
        print(f"| times as fast as: | MB/s | CPU s | {titles} |")
        print(f"| --- | --: | --: |{' --: |' * len(rivals)}")
        for name, (taken, cpu) in seconds.items():
            ratios = " | ".join(f"{seconds[rival][0] / taken:.2f}" for rival in rivals)
            escaped = name.replace("|", "\\|")
            print(f"| {escaped} | {size / taken / 1e6:.0f} | {cpu:.2f} | {ratios} |")
        reads = [got for name, got in seen if name == "reads"]
        entries = reads[0]["entries"]
        print("\n| figure | median | |\n| --- | --: | --- |")
        for name, _, unit, convert in READS:
            value = statistics.median(convert({**figures, **got}) for got in reads)
            print(f"| {name} | {value:.2f} | {unit} |")
        for name in "pipeline, 1 thread", "pipeline, threads":
            peak = max(got["peak_kib"] for ran, got in seen if ran == name) / 1024
            print(f"| peak memory, {name} | {peak:.1f} | MiB, {peak * 2**20 / entries:.0f} bytes an entry |")
        allowed = 2.5 * 2**20 * size / 2**30 + 100 * entries
        bytes_ = figures["index_bytes"]
        print(f"| index of {entries:.0f} entries | {bytes_ / 1e6:.2f} | MB, allowed {allowed / 1e6:.2f} |", flush=True)


def timed(*command):
    """Seconds on the clock, and of processors: the latter hang less on what else runs."""
    begin = time.monotonic(), cpu_seconds()
    run(*command)
    return time.monotonic() - begin[0], cpu_seconds() - begin[1]


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
