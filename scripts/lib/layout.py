"""An OCI image layout built layer by layer with umoci and GNU tar."""

import contextlib
import os
import pathlib
import shutil

from shell import run


class Layout:
    """An image layout under construction; its one image has the tag `latest`."""

    def __init__(self, folder, work):
        self.folder = folder
        self.work = work
        self.count = 0
        run("umoci", "init", "--layout", folder)
        run("umoci", "new", "--image", self.image)

    @property
    def image(self):
        """The image's name as umoci takes it."""
        return f"{self.folder}:latest"

    def add_tar(self, tar, comment):
        """Adds a tar, as it stands, as the next layer."""
        self.count += 1
        run("umoci", "raw", "add-layer", "--image", self.image, "--history.comment", comment, tar)

    def add_tree(self, tree, members, comment, *, kind="posix", options=(), drop=()):
        """Adds a layer that GNU tar makes of `members` of the folder `tree`.

        Only what `members` names is in the layer, parents are not. `kind` is the
        tar format. `drop` takes members out again afterwards: a hard link then
        refers to a lower layer.
        """
        tar = self.work / f"layer-{self.count}.tar"
        if kind == "posix":
            options = ["--xattrs", "--xattrs-include=*", *options]
        names = b"".join(os.fsencode(member) + b"\0" for member in members)
        run("tar", "--create", "--file", tar, "--directory", tree, f"--format={kind}", "--numeric-owner",
            "--sort=name", *options, "--null", "--files-from=-", stdin=names)
        if drop:
            run("tar", "--delete", "--file", tar, *drop)
        self.add_tar(tar, comment)
        tar.unlink()

    @contextlib.contextmanager
    def edit(self, comment):
        """Gives the unpacked root filesystem; what the caller changes becomes a layer.

        umoci finds the differences and writes whiteouts for what is gone.
        """
        self.count += 1
        bundle = self.work / f"bundle-{self.count}"
        run("umoci", "unpack", "--image", self.image, bundle)
        yield pathlib.Path(bundle, "rootfs")
        run("umoci", "repack", "--image", self.image, "--history.comment", comment, bundle)
        shutil.rmtree(bundle)

    def finish(self, *config):
        """Sets the image's configuration and drops blobs that nothing names."""
        run("umoci", "config", "--image", self.image, "--config.env",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *config)
        run("umoci", "gc", "--layout", self.folder)
