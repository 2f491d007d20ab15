"""Runs the rows of the fault matrix one after the other and prints what came of them."""

import contextlib
import pathlib
import shutil
import statistics
import tempfile
import time
import traceback

import field
import faultfield
from shell import Failure, note

HEADER = ("fault", "injected", "read errors", "wrong bytes", "next answer: median, p99, max", "what else", "")


class Outcome:
    """What one row counted. A row says with `require` what must hold."""

    def __init__(self, name, scale):
        self.name, self.scale = name, scale
        self.injected = self.errors = self.wrong = 0
        self.answers = []
        self.remarks, self.failed = [], []
        self.errors_allowed = False

    def times(self, full):
        """How often a fault is injected."""
        return max(1, round(full * self.scale))

    def require(self, holds, what):
        """Notes a failure, once each."""
        if not holds and what not in self.failed:
            self.failed.append(what)
            note(f"  FAILED: {what}")

    def take(self, load):
        """Adds what a load has met."""
        self.errors += len(load.errors)
        self.wrong += len(load.wrong)
        for text in [*load.errors[:3], *load.wrong[:3]]:
            note(f"  reader: {text}")
        if load.broken:
            self.remarks.append(f"{load.broken} commands had to be given again")

    def close(self):
        """What holds for every row."""
        self.require(self.wrong == 0, f"{self.wrong} wrong bytes")
        self.require(self.errors_allowed or self.errors == 0, f"{self.errors} read errors")

    def cells(self):
        answers = "-"
        if self.answers:
            ordered = sorted(self.answers)
            p99 = ordered[min(len(ordered) - 1, round(len(ordered) * 0.99))]
            answers = ", ".join(f"{1000 * t:.0f}" for t in (statistics.median(ordered), p99, ordered[-1])) + " ms"
        what = "; ".join(self.remarks) or "-"
        verdict = "ok" if not self.failed else "**failed**: " + "; ".join(self.failed)
        return (self.name, str(self.injected), str(self.errors), str(self.wrong), answers, what, verdict)


def run(rows, options, chance):
    """All rows; 1 where one has failed."""
    outcomes = []
    faultfield.prepare(options)
    print("| " + " | ".join(HEADER) + " |")
    print("| --- | --: | --: | --: | --- | --- | --- |")
    for name, row in rows.items():
        outcome = Outcome(name, 0.06 if options.short else 1)
        started = time.monotonic()
        note(f"{name}: {row.__doc__.strip().splitlines()[0]}")
        with tempfile_of(name, options) as folder:
            try:
                row(outcome, folder, random_of(chance))
            except Exception as failure:  # whatever it is, the row has failed
                outcome.require(False, f"{type(failure).__name__}: {failure}".splitlines()[0][:200])
                if not isinstance(failure, (Failure, OSError)):
                    traceback.print_exception(failure)
            outcome.close()
            if outcome.failed and options.keep:
                kept = pathlib.Path(tempfile.mkdtemp(prefix=f"peel-faults-{name}-", dir="/var/tmp"))
                for log in folder.rglob("peel.log*"):
                    shutil.copy(log, kept)
                note(f"  logs kept in {kept}")
        outcomes.append(outcome)
        print("| " + " | ".join(outcome.cells()) + " |", flush=True)
        note(f"  {time.monotonic() - started:.0f} s")
    failed = [outcome.name for outcome in outcomes if outcome.failed]
    note(f"{len(outcomes) - len(failed)} rows ok, {len(failed)} failed {' '.join(failed)}")
    return 1 if failed else 0


def random_of(chance):
    """A source of chance of its own: a row alone meets the same faults as among others."""
    return type(chance)(chance.getstate()[1][0])


@contextlib.contextmanager
def tempfile_of(_name, _options):
    with field.workspace() as folder:
        try:
            yield folder
        finally:
            faultfield.detach_below(folder)
