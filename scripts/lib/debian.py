"""Debian packages and root filesystems, from the apt sources this machine has.

No archive is named here: `apt-get indextargets` tells which ones the machine
uses, so a mirror or proxy set up in /etc/apt is used as it is. Sources of other
origins (third-party repositories) are left out, so that the images hold nothing
but the distribution's packages.

State (lists, downloaded packages) lives in a folder of the cache; the machine's
own apt state is only read.
"""

import os
import pathlib

from shell import SYSTEM_PATH, Failure, run

KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Raise it to have the cached base made afresh.
BASE_VERSION = 1


class Debian:
    """The release this machine runs, with apt state of our own under `cache`."""

    def __init__(self, cache):
        self.cache = cache
        self.lines, self.codename = self._sources()
        self.sources = cache / "sources.list"
        self.sources.write_text("\n".join(self.lines) + "\n")
        (cache / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        self._updated = False

    @staticmethod
    def _sources():
        """One-line entries of the machine's Debian sources, and the release's code name."""
        rows = _index_targets()
        if not rows:
            run("apt-get", "update", "-qq")
            rows = _index_targets()
        option = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        lines, names = [], []
        for origin, uri, release, codename, component in rows:
            if origin == "Debian":
                lines.append(f"deb {option}{uri} {release} {component}")
                names.append(codename)
        if not lines:
            raise Failure("apt has no Debian sources on this machine\nhint: see /etc/apt/sources.list*")
        # The release itself has the shortest name: NAME, NAME-updates, NAME-security.
        return sorted(set(lines)), min(names, key=len)

    def base_tar(self):
        """A minbase root filesystem as a tar made by mmdebstrap; cached."""
        path = self.cache / f"base-{self.codename}-{BASE_VERSION}.tar"
        if not path.exists():
            partial = path.with_suffix(".partial")
            stdin = self.sources.read_bytes()
            run("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar",
                self.codename, partial, "-", stdin=stdin)
            partial.rename(path)
        return path

    def download(self, names, status):
        """Downloads packages and what they depend on; returns their files.

        `status` is a dpkg status file: what it lists as installed is left out.
        """
        status.touch()
        archives = self.cache / "archives"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        for old in archives.glob("*.deb"):
            old.unlink()
        options = [
            f"Dir::Etc::sourcelist={self.sources}",
            "Dir::Etc::sourceparts=/dev/null",
            f"Dir::State::lists={self.cache}/lists",
            f"Dir::State::status={status}",
            "Dir::State::extended_states=/dev/null",
            f"Dir::Cache::archives={archives}",
            "APT::Sandbox::User=root",
        ]
        apt = ["apt-get", "-qq", *(f"--option={option}" for option in options)]
        if not self._updated:
            run(*apt, "update")
            self._updated = True
        run(*apt, "install", "-y", "--no-install-recommends", "--download-only", *names)
        return sorted(archives.glob("*.deb"))

    def install(self, root, names):
        """Installs packages and what they depend on into the root filesystem `root`.

        The machine's apt resolves against the package status of `root`; the dpkg
        inside `root` does the rest, so that maintainer scripts run as they would.
        """
        packages = self.download(names, root / "var/lib/dpkg/status")
        inside = root / "tmp" / "archives"
        inside.mkdir()
        for package in packages:
            package.rename(inside / package.name)
        # Names are unpacked in the shell's order, which knows nothing of Pre-Depends.
        script = "dpkg --force-depends --unpack /tmp/archives/*.deb && dpkg --configure -a"
        run("/usr/bin/env", "-i", f"PATH={SYSTEM_PATH}", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive",
            "/usr/sbin/chroot", root, "sh", "-c", script)
        for package in inside.iterdir():
            package.unlink()
        inside.rmdir()


def _index_targets():
    fields = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)"
    output = run("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    rows = [line.split("|") for line in os.fsdecode(output).splitlines()]
    return [row for row in rows if len(row) == 5]
