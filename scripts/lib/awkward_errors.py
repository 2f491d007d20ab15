"""Layers that cannot be applied, or hardly.

Each function is a case: its name, what it is about, and what it returns, a tar or a list of
them, lowest first.
"""

from awkward_stacks import base
from awkward_tars import AFTER
from tarbytes import END, file, folder, hard_link, pax, symlink, tar, xattr

ERRORS = []


def error(function):
    ERRORS.append(function)
    return function


@error
def hard_link_to_folder():
    """a hard link to a folder"""
    return tar(folder(b"d"), hard_link(b"h", b"d"))


@error
def hard_link_to_nothing():
    """a hard link to what no layer has"""
    return [base(), tar(hard_link(b"h", b"none"))]


@error
def hard_link_to_itself():
    """a hard link whose target is its own name"""
    return tar(file(b"a", b"x"), hard_link(b"a", b"a"))


@error
def symlink_without_target():
    """a symlink to the empty string"""
    return tar(symlink(b"s", b""), AFTER)


@error
def parent_that_is_a_file():
    """a parent that is a file of the same layer"""
    return tar(file(b"a", b"x"), file(b"a/b", b"y"))


@error
def parents_in_a_loop():
    """symlinks among the parents that lead to each other"""
    return tar(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x", b"x"))


@error
def cut_in_header():
    """the tar ends inside a header"""
    return AFTER + file(b"x", b"x")[:300]


@error
def cut_in_content():
    """the tar ends inside a file, whose size goes past the end"""
    return AFTER + file(b"x", b"c" * 2000)[:1500]


@error
def cut_after_pax_header():
    """the tar ends after an extended header"""
    return AFTER + pax((b"path", b"x"))


@error
def checksum_wrong():
    """a header with a wrong checksum"""
    damaged = bytearray(file(b"x", b"x"))
    damaged[0] ^= 1
    return AFTER + bytes(damaged) + END


@error
def size_negative():
    """a negative size in base 256"""
    return tar(file(b"x", b"", fields=[(124, b"\xff" * 12)]))


@error
def size_not_octal():
    """a size with a digit 9"""
    return tar(file(b"x", b"", fields=[(124, b"00000000009\0")]))


@error
def not_a_tar():
    """text, not a tar"""
    return b"this is no tar\n" * 100


@error
def owner_over_32_bits():
    """a uid past 32 bits"""
    return tar(file(b"x", b"x", uid=5_000_000_000), AFTER)


@error
def name_with_nul():
    """a PAX path with a NUL in it"""
    return tar(pax((b"path", b"a\0b")), file(b"x", b"x"))


@error
def symlink_over_path_max():
    """a symlink target of 5000 bytes"""
    return tar(pax((b"linkpath", b"t" * 5000)), symlink(b"s", b"x"))


@error
def xattr_value_too_long():
    """an xattr value of 70000 bytes"""
    return tar(pax(xattr(b"user.big", b"v" * 70000)), file(b"x", b"x"))
