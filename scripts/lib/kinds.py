"""Recipes of the four images. Each takes the parts it needs and fills a layout."""

import json
import os
import pathlib
import shutil
import subprocess

import odd
from shell import Failure, run

# Enough files for an npm tree as applications have it (about 13,000).
NPM_PACKAGES = ["lodash@4", "date-fns@4", "rxjs@7", "core-js@3", "express@4", "typescript@5"]
MAIN_JS = """\
const { chunk } = require('lodash');
const { addDays, formatISO } = require('date-fns');
require('express');
console.log(chunk([1, 2, 3, 4], 2).length, formatISO(addDays(new Date(2020, 0, 31), 1), { representation: 'date' }));
"""


def small(debian, layout, work):
    """A few Debian packages, taken apart without running anything: made in seconds."""
    lower = ["base-files", "busybox", "libc6"]
    packages = debian.download([*lower, "coreutils"], work / "status")
    trees = {"lower": work / "lower", "upper": work / "upper"}
    for tree in trees.values():
        for name in ("bin", "sbin", "lib", "lib64"):
            (tree / "usr" / name).mkdir(parents=True)
            (tree / name).symlink_to(f"usr/{name}")
    for package in packages:
        side = "lower" if package.name.split("_")[0] in lower else "upper"
        # Not --extract: it would replace the links above by folders.
        content = run("dpkg-deb", "--fsys-tarfile", package)
        run("tar", "--extract", "--preserve-permissions", "--keep-directory-symlink",
            "--directory", trees[side], stdin=content)
    first, second = trees["lower"], trees["upper"]
    (first / "usr/bin/sh").symlink_to("busybox")
    (first / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    (first / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    os.link(first / "usr/bin/busybox", first / "usr/bin/ash")
    layout.add_tree(first, ["."], "base-files, libc6, busybox")
    layout.add_tree(second, ["usr"], "coreutils")
    third = work / "third"
    (third / "usr/share/doc").mkdir(parents=True)
    (third / "usr/share/doc/.wh..wh..opq").touch()
    (third / "usr/share/doc/README").write_text("Documentation was left out of this image.\n")
    (third / "usr/share/.wh.info").touch()
    (third / "etc").mkdir()
    (third / "etc/motd").write_text("A small image for peel's quickstart.\n")
    layout.add_tree(third, ["etc/motd", "usr/share"], "without documentation")
    layout.finish("--config.cmd", "/bin/sh")


def minbase(debian, layout, work):
    """Debian's minbase; a layer of ordinary changes; a layer of everything that is odd."""
    layout.add_tar(debian.base_tar(), "mmdebstrap --variant=minbase")
    with layout.edit("files changed, deleted and added") as root:
        _ordinary_changes(root)
    tree = work / "third"
    members = _odd_layer(tree)
    layout.add_tree(tree, members, "what is seldom met", options=["--sparse"])
    # A hard link to a file of a lower layer, with a header of its own. tar writes
    # one only next to its target, so the target is taken out again.
    tree = work / "fourth"
    target = "usr/local/lib/three/a"
    odd.write(tree / target, b"three names\n", mode=0o640, owner=(0, 42), mtime=1_500_000_000_250_000_000)
    os.link(tree / target, tree / "usr/local/lib/three/up")
    layout.add_tree(tree, [target, "usr/local/lib/three/up"], "a link into a lower layer", drop=[target])
    layout.finish("--config.cmd", "/bin/bash")


def _ordinary_changes(root):
    (root / "etc/motd").write_text("changed in the second layer\n")
    os.chmod(root / "etc/issue", 0o600)
    os.chown(root / "etc/issue.net", 1000, 1000)
    folders = [path for path in (root / "usr/share/doc").iterdir() if not path.is_symlink()]
    for folder in sorted(folders)[::2]:
        shutil.rmtree(folder)
    (root / "usr/bin/perlthanks").unlink(missing_ok=True)  # one of two hard links
    capable = root / "usr/local/bin/capable"
    shutil.copy(root / "bin/ls", capable)
    os.setxattr(capable, "security.capability", odd.CAP_NET_RAW)
    shutil.copy(root / "bin/ls", root / "usr/local/bin/suid")
    os.chmod(root / "usr/local/bin/suid", 0o4755)
    odd.write(root / "usr/local/lib/three/a", b"three names\n")
    for name in "bc":
        os.link(root / "usr/local/lib/three/a", root / "usr/local/lib/three" / name)
    # What the third layer hides or turns into something else
    for name in ("opaque/old", "opaque/sub/old", "again/old", "dir-to-file/old", "dir-to-link/old", "gone/old"):
        odd.write(root / "srv" / name, b"of the second layer\n")
    for name in ("file-to-dir", "gone-file", "file-to-fifo"):
        odd.write(root / "srv" / name, b"of the second layer\n")
    (root / "srv/link-to-dir").symlink_to("opaque")


def _odd_layer(tree):
    """Builds the third layer's folder; returns the members that the tar lists."""
    odd.populate(tree / "srv/odd")
    srv = tree / "srv"
    for name in ("opaque/.wh..wh..opq", ".wh.gone", ".wh.gone-file", ".wh.again", ".wh..wh.plnk"):
        odd.write(srv / name)
    for name in ("opaque/new", "opaque/sub/new", "again/new", "file-to-dir/new", "link-to-dir/new", "dir-to-file"):
        odd.write(srv / name, b"of the third layer\n", mtime=1_700_000_000_500_000_000)
    (srv / "dir-to-link").symlink_to("opaque")
    os.mkfifo(srv / "file-to-fifo")
    # No layer lists the parents of this one
    odd.write(tree / "opt/never/listed/file", b"parents are made up\n")
    # This one's parent is listed below, not here
    odd.write(tree / "etc/added", b"etc is not in this layer\n")
    return ["srv", "opt/never/listed/file", "etc/added"]


def python(debian, layout, work):
    """Minbase, python3 as a package, numpy by pip, and a cleanup."""
    layout.add_tar(debian.base_tar(), "mmdebstrap --variant=minbase")
    with layout.edit("apt-get install python3 iputils-ping") as root:
        debian.install(root, ["python3", "iputils-ping", "libcap2-bin"])
        versions = (root / "usr/lib").glob("python3.*")
        version = max((path.name for path in versions), key=lambda name: int(name.split(".")[1]))
        documents = sorted(path.name for path in (root / "usr/share/doc").iterdir())
    tree = work / "pip"
    target = pathlib.Path("usr/local/lib", version, "dist-packages")
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)]
    run(*_pip(), "install", "--quiet", "--root-user-action=ignore", "--disable-pip-version-check",
        "--no-compile", "--only-binary=:all:", f"--python-version={version.removeprefix('python')}",
        *platforms, "--target", tree / target, "numpy>=2,<3")
    odd.populate(tree / "srv/odd")
    layout.add_tree(tree, [target, "srv"], "pip install numpy", options=["--owner=0", "--group=0"])
    cleanup = work / "cleanup"
    gone = [f"usr/share/doc/.wh.{name}" for name in documents]
    gone += [f"{target}/numpy/.wh.tests", f"{target}/numpy/linalg/.wh.tests", "var/cache/.wh.debconf"]
    for name in gone:
        odd.write(cleanup / name)
    layout.add_tree(cleanup, gone, "without documentation and tests", kind="gnu")
    layout.finish("--config.cmd", "python3", "--config.env", "PYTHONDONTWRITEBYTECODE=1")


def node(debian, layout, work):
    """Minbase, nodejs as a package, an npm tree of more than 10,000 files, and a cleanup."""
    layout.add_tar(debian.base_tar(), "mmdebstrap --variant=minbase")
    with layout.edit("apt-get install nodejs") as root:
        debian.install(root, ["nodejs"])
        documents = sorted(path.name for path in (root / "usr/share/doc").iterdir())
    tree = work / "npm"
    app = tree / "opt/app"
    app.mkdir(parents=True)
    (app / "package.json").write_text(json.dumps({"name": "app", "private": True}))
    (app / "main.js").write_text(MAIN_JS)
    run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error",
        "--fetch-retry-maxtimeout=10000",
        "--cache", work / "npm-cache", *NPM_PACKAGES, cwd=app)
    layout.add_tree(tree, ["opt/app"], "npm install", options=["--owner=0", "--group=0"])
    cleanup = work / "cleanup"
    gone = [f"usr/share/doc/.wh.{name}" for name in documents]
    for path in sorted((app / "node_modules").glob("*/README.md")):
        gone.append(f"{path.parent.relative_to(tree)}/.wh.README.md")
    gone += ["opt/app/node_modules/rxjs/.wh.src", "opt/app/node_modules/core-js/es/.wh..wh..opq"]
    for name in gone:
        odd.write(cleanup / name)
    odd.write(cleanup / "opt/app/node_modules" / ("long-" * 25) / "index.js", b"module.exports = {};\n")
    layout.add_tree(cleanup, [*gone, "opt/app/node_modules/" + "long-" * 25], "without documentation",
                    kind="gnu")
    layout.finish("--config.workingdir", "/opt/app", "--config.entrypoint", "node", "--config.cmd", "main.js")


def _pip():
    """The first Python on this machine that has pip."""
    for interpreter in ("python3", "/usr/bin/python3"):
        command = [interpreter, "-m", "pip"]
        try:
            subprocess.run([*command, "--version"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return command
    raise Failure("pip not found\nhint: run scripts/install-deps test")


RECIPES = {"small": small, "minbase": minbase, "python": python, "node": node}
