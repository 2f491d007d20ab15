"""Running other programs: one place for echo, environment and errors."""

import os
import shlex
import subprocess
import sys
import time

# Programs started here see a fixed locale and search path: package scripts
# and tar's file names must not depend on who calls.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Failure(Exception):
    """Something a user can act on; printed without a traceback."""


def run(*command, env=None, cwd=None, stdin=None, quiet=True):
    """Runs a command; its output is shown only when it fails."""
    words = [os.fspath(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise Failure(f"{words[0]}: not found\nhint: run scripts/install-deps test") from error
    if done.returncode != 0:
        output = (done.stdout or b"").decode(errors="replace")
        shown = " ".join(shlex.quote(os.fsdecode(word)) for word in words)
        raise Failure(f"exit code {done.returncode}: {shown[:2000]}\n{output}".rstrip())
    return done.stdout


def patiently(call):
    """Repeats an unmount that fails: a child that another thread has forked and that has not got to
    its own program yet may hold a file of the mount open."""
    for _ in range(20):
        try:
            return call()
        except Failure:
            time.sleep(0.1)
    return call()


def note(message):
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def require_root():
    """Owners, devices and mounts need root; says so before anything is done."""
    if os.geteuid() != 0:
        raise Failure(f"must run as root\nhint: sudo {' '.join(sys.argv)}")


def main_guard(main):
    """Runs `main`, turning a Failure into a message and exit code 1."""
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
