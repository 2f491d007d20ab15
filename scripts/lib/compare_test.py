"""Tests of compare-trees: every single difference is seen, and nothing else."""

import collections
import io
import os
import shutil
import stat
import tempfile

import odd

Case = collections.namedtuple("Case", "name change expected")
Rule = collections.namedtuple("Rule", "field path value reason")


def _append(path):
    with open(path, "ab") as file:
        file.write(b"!")


def _flip(path):
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"?")
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _keep_time(path, change):
    """Makes a change below a directory without touching the directory's mtime."""
    status = os.stat(path)
    change()
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _cases(tree):
    """Each changes one thing in a copy of the odd tree; (path, field) pairs that must come out."""

    def at(name):
        return os.path.join(tree, name)

    def remade(name, make):
        os.unlink(at(name))
        make(at(name))

    def split():
        remade("links/two", lambda path: shutil.copy2(at("links/one"), path))

    def retarget():
        remade("links/to-up", lambda path: os.symlink("../../../../../..!", path))
        os.utime(at("links/to-up"), ns=(5, 5), follow_symlinks=False)

    return [
        Case("nothing", lambda: None, set()),
        Case("mode", lambda: os.chmod(at("kinds/empty"), 0o600), {("kinds/empty", "mode")}),
        Case("mode of the root", lambda: os.chmod(tree, 0o700), {(".", "mode")}),
        Case("suid", lambda: os.chmod(at("modes/4755"), 0o755), {("modes/4755", "mode")}),
        Case("uid", lambda: os.chown(at("modes/1-2"), 3, -1), {("modes/1-2", "uid")}),
        Case("gid of a symlink", lambda: os.chown(at("links/to-absolute"), -1, 9, follow_symlinks=False),
             {("links/to-absolute", "gid")}),
        Case("one nanosecond", lambda: os.utime(at("modes/time-far"), ns=(0, odd.FAR + 1)),
             {("modes/time-far", "mtime")}),
        Case("mtime of a directory", lambda: os.utime(at("modes/time-dir"), ns=(0, odd.OLD - 1)),
             {("modes/time-dir", "mtime")}),
        Case("one byte, same size and time", lambda: _flip(at("kinds/all-bytes")), {("kinds/all-bytes", "sha256")}),
        Case("a byte more", lambda: _append(at("kinds/all-bytes")),
             {("kinds/all-bytes", "size"), ("kinds/all-bytes", "mtime")}),
        Case("xattr's value", lambda: os.setxattr(at("xattrs/user"), "user.text", b"other"),
             {("xattrs/user", "xattr:user.text")}),
        Case("empty xattr missing", lambda: os.removexattr(at("xattrs/user"), "user.empty"),
             {("xattrs/user", "xattr:user.empty")}),
        Case("xattr missing", lambda: os.removexattr(at("xattrs/capable"), "security.capability"),
             {("xattrs/capable", "xattr:security.capability")}),
        Case("xattr of a symlink",
             lambda: os.removexattr(at("xattrs/symlink"), "trusted.on-a-symlink", follow_symlinks=False),
             {("xattrs/symlink", "xattr:trusted.on-a-symlink")}),
        Case("name missing", lambda: _keep_time(at("names"), lambda: os.unlink(at("names/sp ace"))),
             {("names/sp\\x20ace", "entry")}),
        Case("name added, not UTF-8",
             lambda: _keep_time(at("names"), lambda: odd.write(os.fsencode(at("names/")) + b"\xc3")),
             {("names/\\xc3", "entry")}),
        Case("subdirectory added", lambda: _keep_time(tree, lambda: os.mkdir(at("sub"))),
             {("sub", "entry"), (".", "nlink")}),
        Case("rdev", lambda: _keep_time(at("kinds"), lambda: remade("kinds/null", lambda path: _device(path, 5))),
             {("kinds/null", "rdev")}),
        Case("kind", lambda: _keep_time(at("kinds"), lambda: remade("kinds/empty", lambda path: _fifo(path, at))),
             {("kinds/empty", "kind"), ("kinds/empty", "size")}),
        Case("link target", lambda: _keep_time(at("links"), retarget),
             {("links/to-up", field) for field in ("size", "mtime", "target")}),
        Case("hard link split", lambda: _keep_time(at("links"), split),
             {(f"links/{name}", field) for name in ("one", "two", "sub/three") for field in ("nlink", "links")}),
    ]


def _device(path, minor):
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    os.chmod(path, 0o666)
    os.utime(path, ns=(7, 7))


def _fifo(path, at):
    os.mkfifo(path)
    os.chmod(path, 0o644)
    status = os.stat(at("kinds/null"))
    os.utime(path, ns=(status.st_mtime_ns, 7))


def run(compare):
    """Runs every case; returns the exit code."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="compare-trees-") as folder:
        original = os.path.join(folder, "original")
        odd.populate(original)
        for name in ("kinds/null", "kinds/empty"):
            os.utime(os.path.join(original, name), ns=(7, 7))
        count = len(_cases(original))
        for number in range(count):
            copy = os.path.join(folder, f"copy-{number}")
            os.system(f"cp -a '{original}' '{copy}'")
            case = _cases(copy)[number]
            case.change()
            out = io.StringIO()
            counted = compare(original, copy, out=out)
            lines = [line.split("\t") for line in out.getvalue().splitlines()]
            found = {(line[0], line[1]) for line in lines if len(line) == 4}
            if found != case.expected or counted != len(found):
                failed += 1
                print(f"FAILED {case.name}: expected {sorted(case.expected)}, found {sorted(found)}")
        failed += _rules(compare, original, copy)
    print(f"{count + 1 - failed} passed, {failed} failed")
    return 1 if failed else 0


def _rules(compare, original, copy):
    """Known and ignored differences do not count; a known one of another value does."""
    paths = "links/*"
    known = [Rule("links", paths, "*", "why"), Rule("nlink", paths, "3", "why")]
    results = [
        compare(original, copy, known, out=io.StringIO()) == 0,
        compare(original, copy, (), [("links", "*"), ("nlink", "links/*")], out=io.StringIO()) == 0,
        compare(original, copy, [known[0], known[1]._replace(value="4")], out=io.StringIO()) == 3,
    ]
    if not all(results):
        print(f"FAILED rules: {results}")
    return 0 if all(results) else 1
