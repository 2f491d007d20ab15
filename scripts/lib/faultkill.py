"""Rows of the fault matrix: processes that die, stop, are replaced or ended; clocks; many at once."""

import concurrent.futures
import json
import pathlib
import signal
import statistics
import subprocess
import time

from faultfield import (Daemon, Layout, Registry, busy_image, compare, content, drop_caches, eventually, kill, mounted)
from shell import Failure

ANSWER = 0.1  # seconds, median after a kill
MEMORY = 4 << 20  # what a thousand mounts may leave
FAKETIME = pathlib.Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def worker_kill(row, folder, chance):
    """kill -9 of the worker, 100 times"""
    with mounted(folder) as (peel, load, *_), load:
        for _ in range(row.times(100)):
            time.sleep(chance.uniform(0.1, 0.4))
            worker = peel.worker()
            kill(worker)
            row.answers.append(load.answer())
            row.injected += 1
            peel.next_worker(worker)
        load.go_on()
    row.take(load)
    row.require(statistics.median(row.answers) <= ANSWER, f"median answer after {statistics.median(row.answers):.3f} s")


def keeper_kill(row, folder, chance):
    """kill -9 of the keeper, 20 times"""
    with mounted(folder) as (peel, load, *_), load:
        for _ in range(row.times(20)):
            time.sleep(chance.uniform(0.1, 0.4))
            before = peel.keeper()
            kill(before["pid"])
            row.answers.append(load.answer())
            row.injected += 1
            eventually("another keeper", lambda old=before: peel.keeper().get("pid", old["pid"]) != old["pid"])
            row.require(peel.worker() == before["worker"], "the worker was replaced as well")
        load.go_on()
        row.require(peel.keeper()["keepers"] == row.injected, "keepers are not counted")
    row.take(load)


def both_kill(row, folder, _):
    """kill -9 of keeper and worker at once, 5 times: mounts are lost, the next start cleans up and says so"""
    row.errors_allowed = True
    layout = Layout(folder / "layout")
    reference = busy_image(layout)
    with Daemon(folder / "peel") as peel:
        for number in range(row.times(5)):
            peel.mount(reference, folder / "m")
            peel("mount", "--rw", "--name", "kept", reference, folder / "rw")
            (folder / f"rw/{number}").write_text("by hand")
            both = peel.keeper()
            for pid in (both["pid"], both["worker"]):
                kill(pid, signal.SIGSTOP)
            for pid in (both["worker"], both["pid"]):
                kill(pid)
            row.injected += 1
            peel.mounts.remove(folder / "m")
            peel("images")  # starts a daemon
            cleaned = peel.keeper()["cleaned"]
            row.require(cleaned == 3, f"{cleaned} mounts cleaned up, expected 3")
            peel("mount", "--rw", "--name", "kept", reference, folder / "rw")
            kept = [(folder / f"rw/{n}").read_text() for n in range(number + 1)]
            row.require(kept == ["by hand"] * (number + 1), "what was written is gone")
            peel("umount", folder / "rw")
    row.remarks.append("mounts are gone, what was written is kept")


def reload(row, folder, chance):
    """peel daemon reload, 20 times"""
    with mounted(folder) as (peel, load, *_), load:
        for _ in range(row.times(20)):
            time.sleep(chance.uniform(0.1, 0.4))
            ran = peel.try_("daemon", "reload")
            row.answers.append(load.answer())
            row.injected += 1
            row.require(ran.returncode == 0, f"reload: {ran.stderr.strip()[:200]}")
        load.go_on()
        state = peel.keeper()
        row.require(state["reloads"] == row.injected, f"{state['reloads']} reloads counted")
        row.require(load.broken == 0, "commands were broken off")
    row.take(load)


def terminate(row, folder, chance):
    """SIGTERM to worker and keeper, 5 times each; then a clean stop and start"""
    with mounted(folder) as (peel, load, layout, _):
        with load:
            for _ in range(row.times(5)):
                time.sleep(chance.uniform(0.1, 0.4))
                both = peel.keeper()
                kill(both["pid"], signal.SIGTERM)
                row.answers.append(load.answer())
                kill(both["worker"], signal.SIGTERM)
                row.answers.append(load.answer())
                row.injected += 2
                peel.next_worker(both["worker"])
                row.require(peel.keeper()["pid"] == both["pid"], "the keeper went although there are mounts")
            load.go_on()
        row.take(load)
        peel("daemon", "stop")
        row.injected += 1
        left = pathlib.Path("/proc/self/mountinfo").read_text().count(f" {folder}/")
        row.require(left == 0, f"{left} mounts left by a clean stop")
        peel.mounts.clear()
        names = [image["name"] for image in peel.json("images")]
        peel.mount(next(name for name in names if name.endswith(":busy")), folder / "m")
        compare(folder / "m", layout.files["busy"], load.errors, load.wrong)
        row.take(load)


def stopped(row, folder, _):
    """SIGSTOP of the worker for 10 s"""
    with mounted(folder) as (peel, load, *_), load:
        worker = peel.worker()
        kill(worker, signal.SIGSTOP)
        time.sleep(10 if row.scale == 1 else 2)
        kill(worker, signal.SIGCONT)
        row.injected += 1
        row.answers.append(load.answer())
        load.go_on()
        row.require(peel.worker() == worker, "the worker was replaced")
    row.take(load)


def poison(row, folder, _):
    """a request that crashes every worker that takes it, beside a healthy load"""
    row.errors_allowed = True
    with mounted(folder, container=False) as (peel, load, layout, _):
        bad = layout.add("bad", {"poison": content(5, 100_000)})
        peel.mount(bad, folder / "bad")
        blob = peel.root / "content/blobs" / inspect(peel, bad)["layers"][0]["digest"].replace(":", "/")
        with load:
            log = folder / "strace.log"
            tracer = subprocess.Popen(
                ["strace", "--follow-forks", "--quiet=all", f"--trace-path={blob}", "--trace=pread64",
                 "--inject=pread64:signal=SIGABRT", f"--output={log}", f"--attach={peel.keeper()['pid']}"],
                stderr=subprocess.DEVNULL)
            try:
                eventually("strace has attached", lambda: is_traced(peel.keeper()["pid"]))
                worker = peel.worker()
                kill(worker)  # the next one is traced from its start
                peel.next_worker(worker)
                drop_caches()
                error = None
                started = time.monotonic()
                try:
                    (folder / "bad/poison").read_bytes()
                except OSError as failure:
                    error = failure.strerror
                row.answers.append(time.monotonic() - started)
                row.injected += 1
                row.errors += 1
                row.require(error == "Input/output error", f"the poisoned read gave {error}")
                barred = eventually("it is barred", lambda: peel.keeper().get("barred"))
                row.remarks.append(f"{len(barred)} request barred after {peel.keeper()['restarts'] - 1} deaths")
                load.go_on()
                again = len(load.errors)
                row.require(again == 0, "others met errors")
            finally:
                tracer.send_signal(signal.SIGINT)
                tracer.wait()
        row.take(load)
        row.require(not load.errors, f"{len(load.errors)} errors of healthy readers")
        peel("daemon", "reload")
        compare(folder / "bad", layout.files["bad"], load.errors, load.wrong)
        row.require(not load.errors, "still refused after a reload")


def is_traced(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return "TracerPid:\t0" not in status


def inspect(peel, reference):
    """What peel knows of an image."""
    return json.loads(peel("inspect", reference))


def clocks(row, folder, chance):
    """the clock jumps by years, back and forth, 20 times"""
    if not FAKETIME.exists():
        raise Failure("libfaketime: not found; scripts/install-deps faults")
    clock = folder / "clock"
    clock.write_text("+0\n")
    environment = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
                   "DONT_FAKE_MONOTONIC": "1"}
    with mounted(folder, environment=environment) as (peel, load, layout, _), load:
        for _ in range(row.times(20)):
            clock.write_text(chance.choice(["-10y", "+10y", "-1d", "+1d", "+0", "-3600"]) + "\n")
            row.injected += 1
            time.sleep(0.3)
            peel.mount(f"oci:{layout.folder}:busy", folder / "other")
            compare(folder / "other", {"d0/f0": layout.files["busy"]["d0/f0"]}, load.errors, load.wrong)
            peel.umount(folder / "other")
            if row.injected % 5 == 0:
                worker = peel.worker()
                kill(worker)
                row.answers.append(load.answer())
                peel.next_worker(worker)
        load.go_on()
    row.take(load)


def cycles(row, folder, _):
    """1,000 mounts and unmounts, every tenth writable"""
    layout = Layout(folder / "layout")
    reference = busy_image(layout)
    errors, wrong = [], []
    names = ["d3/f3", "big"]
    files = {name: layout.files["busy"][name] for name in names}
    with Daemon(folder / "peel") as peel:

        def cycle(number):
            writable = ["--rw"] if number % 10 == 9 else []
            peel("mount", *writable, reference, folder / "m")
            compare(folder / "m", files, errors, wrong)
            peel("umount", *(["--rm"] if writable else []), folder / "m")

        for number in range(20):
            cycle(number)
        before = peel.usage()
        for number in range(row.times(1000)):
            cycle(number)
            row.injected += 1
        after = peel.usage()
        row.require(peel.json("mounts") == [], "records of mounts are left")
        row.require(not list((peel.root / "snapshots").iterdir()), "uppers are left")
        grown = {what: after[what] - before[what] for what in before}
        row.remarks.append(", ".join(f"{what} {count:+}" for what, count in grown.items()))
        for what in ("mounts", "slots"):
            row.require(grown[what] == 0, f"{what} leak: {before[what]} to {after[what]}")
        row.require(grown["descriptors"] <= 2, "descriptors leak")
        row.require(grown["memory"] <= MEMORY, "memory leaks")
    row.errors, row.wrong = len(errors), len(wrong)


def parallel(row, folder, _):
    """50 pulls of one image at once"""
    layout = Layout(folder / "layout")
    layers = [{f"l{n}/{m}": content(n * 10 + m, 500_000) for m in range(4)} for n in range(4)]
    layout.add("many", *layers)
    with Registry(layout) as registry, Daemon(folder / "peel") as peel:
        reference = registry.reference("many")
        count = row.times(50) if row.scale == 1 else 10
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            pulls = list(pool.map(lambda _: peel.try_("pull", "--quiet", reference), range(count)))
        row.injected = count
        bad = [pull.stderr for pull in pulls if pull.returncode != 0]
        row.require(not bad, f"{len(bad)} pulls failed: {bad[:1]}")
        blobs = [asked for digest, asked in registry.asked.items() if layout.path(digest).stat().st_size > 10_000]
        row.remarks.append(f"each of {len(blobs)} layers fetched {max(blobs)} time")
        row.require(max(blobs) == 1, "a layer was fetched more than once")
        peel.mount(reference, folder / "m")
        errors, wrong = [], []
        compare(folder / "m", layout.files["many"], errors, wrong)
        row.errors, row.wrong = len(errors), len(wrong)
        row.require(not list((peel.root / "content/ingest").iterdir()), "ingests are left")


def registry_dies(row, folder, chance):
    """the registry breaks off in the middle of layers, 20 pulls"""
    with mounted(folder, pulls=0, container=False) as (peel, load, layout, registry), load:
        outcomes = {"came through": 0, "failed cleanly": 0}
        for number in range(row.times(20)):
            layout.add(f"cut{number}", {f"c{number}": content(7000 + number, 3_000_000)})
            reference = registry.reference(f"cut{number}")
            # The first of them alone, or every one until somebody repairs the registry
            left = [1 if number % 2 else 10**9]

            def cut(size, left=left):
                left[0] -= 1
                return chance.randrange(size) if left[0] >= 0 else size

            registry.cut = cut
            ran = peel.try_("pull", "--quiet", reference)
            registry.cut = None
            row.injected += 1
            outcomes["failed cleanly" if ran.returncode else "came through"] += 1
            if ran.returncode:
                row.require(ran.stderr.startswith("error: ") and "hint: " in ran.stderr, f"said: {ran.stderr[:200]}")
                named = [image["name"] for image in peel.json("images")]
                row.require(not any(f"cut{number}" in name for name in named), "half an image is there")
                peel("pull", "--quiet", reference)
            peel.mount(reference, folder / "cut")
            compare(folder / "cut", layout.files[f"cut{number}"], load.errors, load.wrong)
            peel.umount(folder / "cut")
            peel("rm", reference)
        row.remarks.append(", ".join(f"{count} {what}" for what, count in outcomes.items() if count))
        ingests = list((peel.root / "content/ingest").iterdir())
        row.require(not ingests, f"{len(ingests)} ingests left after all was pulled and removed")
    row.take(load)


ROWS = {"worker-kill": worker_kill, "poison": poison, "keeper-kill": keeper_kill, "both-kill": both_kill,
        "reload": reload, "sigterm": terminate, "sigstop": stopped, "clock": clocks, "cycles": cycles,
        "parallel": parallel, "registry": registry_dies}
