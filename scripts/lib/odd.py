"""Files that are legal and seldom met: what a reader of layers must get right."""

import os
import stat

# A file capability (cap_net_raw=ep) as the kernel stores it: vfs_cap_data, revision 2.
CAP_NET_RAW = bytes.fromhex("01000002" "00200000" "00000000" "00000000" "00000000")

OLD = -1_500_000_000  # a second and a half before 1970
FAR = 4_102_444_800_123_456_789  # 2100-01-01, with nanoseconds


def write(path, content=b"", *, mode=0o644, owner=(0, 0), mtime=None):
    """Writes a file with exactly these attributes; makes its parents."""
    path = os.fsencode(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    os.chown(path, *owner)
    os.chmod(path, mode)
    if mtime is not None:
        os.utime(path, ns=(mtime, mtime))


def populate(root):
    """Fills the folder `root` with one of everything. Needs root."""
    base = os.fsencode(root)
    os.umask(0o022)
    os.makedirs(base)
    _names(base + b"/names")
    _modes_and_times(base + b"/modes")
    _kinds(base + b"/kinds")
    _links(base + b"/links")
    _xattrs(base + b"/xattrs")
    _sparse(base + b"/sparse")
    os.chmod(base, 0o2775)
    os.chown(base, 0, 50)
    os.utime(base, ns=(0, 1_234_567_890_987_654_321))


def _names(base):
    names = [b"sp ace", b" ", b"new\nline", b"tab\there", b"back\\slash", b"latin-1 caf\xe9",
             b"\xff\xfe", "d\u00e9j\u00e0 vu \U0001f980".encode(), b"-dash", b"*star?[x]", b"..dots",
             b"quote'\"", b"colon:comma,", b"n" * 255, b"wh.not-a-whiteout", b"\x01\x7f"]
    for number, name in enumerate(names):
        write(base + b"/" + name, b"content %d\n" % number)
    deep = base + b"/" + b"/".join(b"deep-%02d-%s" % (level, b"x" * 40) for level in range(8))
    write(deep + b"/leaf", b"deep\n")
    write(deep + b"/caf\xe9", b"deep and not UTF-8\n")


def _modes_and_times(base):
    for mode in (0, 0o1, 0o400, 0o4755, 0o2755, 0o6711, 0o7777):
        write(base + b"/%04o" % mode, b"mode\n", mode=mode)
    os.mkdir(base + b"/sticky")
    os.chmod(base + b"/sticky", 0o1777)
    os.mkdir(base + b"/private", 0o700)
    owners = [(1, 2), (65534, 65534), (3_000_000, 4_000_000_000)]
    for uid, gid in owners:
        write(base + b"/%d-%d" % (uid, gid), b"owner\n", owner=(uid, gid))
    times = {b"epoch": 0, b"one-ns": 1, b"old": OLD, b"far": FAR, b"sub-second": 1_600_000_000_000_000_001}
    for name, mtime in times.items():
        write(base + b"/time-" + name, name, mtime=mtime)
    os.mkdir(base + b"/time-dir")
    write(base + b"/time-dir/inside", b"")
    os.utime(base + b"/time-dir", ns=(OLD, OLD))


def _kinds(base):
    os.mkdir(base)
    write(base + b"/empty")
    os.mkdir(base + b"/empty-dir")
    os.mkfifo(base + b"/fifo", 0o600)
    os.mknod(base + b"/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(base + b"/loop", stat.S_IFBLK | 0o600, os.makedev(7, 99))
    os.mknod(base + b"/big-minor", stat.S_IFCHR | 0o600, os.makedev(511, 0xF_FFFF))
    os.chmod(base + b"/fifo", 0o622)
    os.chmod(base + b"/null", 0o666)
    write(base + b"/all-bytes", bytes(range(256)) * 1000)


def _links(base):
    os.mkdir(base)
    write(base + b"/one", b"shared\n")
    os.link(base + b"/one", base + b"/two")
    os.mkdir(base + b"/sub")
    os.link(base + b"/one", base + b"/sub/three")
    targets = {b"dangling": b"nowhere", b"absolute": b"/etc/passwd", b"up": b"../../../../../..",
               b"self": b"self", b"odd": b"caf\xe9 \n*", b"long": b"long/" * 60, b"dir": b"sub"}
    for name, target in targets.items():
        os.symlink(target, base + b"/to-" + name)
    os.utime(base + b"/to-dangling", ns=(OLD, OLD), follow_symlinks=False)
    os.chown(base + b"/to-absolute", 7, 8, follow_symlinks=False)
    os.link(base + b"/to-dangling", base + b"/to-dangling-again", follow_symlinks=False)
    os.mkfifo(base + b"/fifo")
    os.link(base + b"/fifo", base + b"/fifo-again")


def _xattrs(base):
    write(base + b"/capable", b"#!/bin/sh\n", mode=0o755)
    os.setxattr(base + b"/capable", "security.capability", CAP_NET_RAW)
    write(base + b"/user", b"")
    values = {b"user.text": b"plain", b"user.empty": b"", b"user.long": b"v" * 2000,
              b"user.binary": b"a\n\0=\xff\n17 x=y\n"}
    for name, value in values.items():
        os.setxattr(base + b"/user", name, value)
    os.mkdir(base + b"/dir")
    os.setxattr(base + b"/dir", "user.on-a-directory", b"yes")
    os.setxattr(base + b"/dir", "trusted.peel", b"yes")
    os.mkdir(base + b"/overlay")
    os.setxattr(base + b"/overlay", "trusted.overlay.opaque", b"y")
    write(base + b"/overlay/still-here", b"an attribute of a tar is no order to overlayfs\n")
    os.symlink(b"user", base + b"/symlink")
    os.setxattr(base + b"/symlink", "trusted.on-a-symlink", b"yes", follow_symlinks=False)


def _sparse(base):
    os.mkdir(base)
    with open(base + b"/holes", "wb") as file:
        for offset in (1 << 20, 3 << 20):
            file.seek(offset)
            file.write(b"data after a hole")
        file.truncate(8 << 20)
    with open(base + b"/only-a-hole", "wb") as file:
        file.truncate(1 << 20)
