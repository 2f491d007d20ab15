"""Awkward archives and streams: one layer that is hard to read.

Each function is a case: its name, what it is about, and what it returns, the tar. In
COMPRESSIONS they are given the tar, and return the blob and how its media type calls it.
"""

import functools
import struct
import zlib

from tarbytes import (BGZF_END, END, GNU, V7, base256, bgzf, entry, file, folder, gnu_long, gzip, gzip_trailer,
                      hard_link, header, libarchive_xattr, padded, pax, signed_sum, skippable, symlink,
                      tar, xattr, zstd)

AFTER = file(b"after", b"still in step\n")
CAPABILITY = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")
DIALECTS, COMPRESSIONS = [], []


def dialect(function):
    DIALECTS.append(function)
    return function


def compression(function):
    # Each has a tar of its own: containerd unpacks the same one but once, however it is packed
    data = tar(folder(b"d"), file(b"d/" + function.__name__.encode(), b"0123456789" * 200), symlink(b"link", b"d"), AFTER)

    @functools.wraps(function)
    def case():
        return *function(data), data

    COMPRESSIONS.append(case)
    return case


@dialect
def v7():
    """V7 headers: no magic, kinds NUL, 1 and 2, folders by a trailing slash"""
    return tar(entry(b"dir/", b"\0", mode=0o750, magic=V7), entry(b"dir/file", b"\0", b"v7\n", magic=V7),
               entry(b"link", b"2", link=b"dir/file", magic=V7), entry(b"hard", b"1", link=b"dir/file", magic=V7))


@dialect
def ustar_prefix():
    """a name of 200 bytes in prefix and name"""
    return tar(file(b"n" * 99, b"x", fields=[(345, b"p" * 90)]), AFTER)


@dialect
def prefix_without_name():
    """a ustar prefix and an empty name"""
    return tar(folder(b"", fields=[(345, b"dir")]), AFTER)


@dialect
def prefix_in_gnu_header():
    """a prefix in a GNU header, where atime and ctime are: Go before 1.8 wrote it"""
    return tar(file(b"name", b"x", magic=GNU, fields=[(345, b"some/directories/of/a/prefix")]), AFTER)


@dialect
def gnu_long_names():
    """GNU long name and long link target"""
    name, target = b"long/" * 30 + b"name", b"t" * 150
    return tar(gnu_long(b"L", name), file(name[:100], b"x", magic=GNU),
               gnu_long(b"K", target), gnu_long(b"L", name + b"2"), symlink(b"cut", target[:100], magic=GNU),
               gnu_long(b"K", name), hard_link(b"hard", b"cut", magic=GNU))


@dialect
def gnu_long_name_and_pax_path():
    """a GNU long name and a PAX path for the same entry"""
    return tar(gnu_long(b"L", b"from-gnu"), pax((b"path", b"from-pax")), file(b"from-header", b"x", magic=GNU))


@dialect
def gnu_long_name_with_nul():
    """a GNU long name that goes on after its NUL"""
    return tar(gnu_long(b"L", b"seen\0unseen"), file(b"header", b"x", magic=GNU), AFTER)


@dialect
def gnu_times():
    """a GNU header with atime and ctime"""
    return tar(file(b"timed", b"x", magic=GNU, fields=[(345, b"14000000000\0"), (357, b"14000000001\0")]), AFTER)


@dialect
def base_256_numbers():
    """owners, size and mtime in base 256"""
    return tar(file(b"big-owner", b"x", uid=3_000_000_000, gid=2_500_000, magic=GNU),
               file(b"size", b"four", magic=GNU, fields=[(124, base256(4, 12))]),
               file(b"mtime", b"", magic=GNU, fields=[(136, base256(1_500_000_000, 12))]), AFTER)


@dialect
def base_256_negative_mtime():
    """an mtime before 1970 in base 256"""
    return tar(file(b"old", b"x", mtime=-86400, magic=GNU), AFTER)


@dialect
def mtime_of_2262():
    """an mtime whose nanoseconds do not fit 64 bits"""
    return tar(file(b"far", b"x", mtime=10_000_000_000, magic=GNU), AFTER)


@dialect
def owner_minus_one():
    """uid and gid of -1, which lchown(2) leaves alone"""
    return tar(file(b"all-ones", b"x", uid=0xFFFFFFFF, gid=0xFFFFFFFF, magic=GNU), AFTER)


@dialect
def blank_numbers():
    """numeric fields of spaces, of NULs, and without digits to fill them"""
    blank = b" " * 8
    return tar(file(b"spaces", fields=[(100, blank), (108, blank), (116, blank), (124, b" " * 12), (136, b" " * 12)]),
               file(b"nuls", fields=[(100, bytes(8)), (108, bytes(8)), (116, bytes(8)), (136, bytes(12))]),
               file(b"mixed", fields=[(100, b"  644 \0 "), (108, b"7\0xxxxxx"), (116, b"     10 ")]), AFTER)


@dialect
def numbers_to_the_brim():
    """octal fields without a NUL at the end"""
    return tar(file(b"full", b"x", fields=[(100, b"00000600"), (108, b"01000000"), (124, b"000000000001")]), AFTER)


@dialect
def mode_with_file_type():
    """file type bits in the mode, as some archivers write them"""
    return tar(file(b"file", b"x", mode=0o100600), folder(b"dir", mode=0o40710), AFTER)


@dialect
def signed_checksum():
    """the checksum of signed bytes"""
    return tar(file(b"caf\xe9\xe9", b"x", checksum=signed_sum), AFTER)


@dialect
def names_not_utf8():
    """names and targets that are not UTF-8"""
    return tar(file(b"caf\xe9", b"latin"), file(b"\xff\xfe\x01", b"bytes"), symlink(b"to", b"caf\xe9"),
               hard_link(b"hard-\xe9", b"caf\xe9"), pax((b"path", b"pax-\xc3\x28")), file(b"x", b"pax"))


@dialect
def names_of_255_bytes():
    """the longest name there can be"""
    name = b"n" * 255
    return tar(pax((b"path", name)), file(b"x", b"x"), pax((b"path", b"d/" + name)), folder(b"x"), AFTER)


@dialect
def names_of_256_bytes():
    """a name that is one byte too long"""
    return tar(pax((b"path", b"n" * 256)), file(b"x", b"x"), AFTER)


@dialect
def path_near_path_max():
    """a path of 3900 bytes in 20 folders"""
    return tar(pax((b"path", b"/".join([b"d" * 194] * 20) + b"/f")), file(b"x", b"x"), AFTER)


@dialect
def path_over_path_max():
    """a path of 5000 bytes, each name short"""
    return tar(pax((b"path", b"/".join([b"d" * 99] * 50))), file(b"x", b"x"), AFTER)


@dialect
def spellings_of_a_path():
    """./, //, /./, a trailing slash, an absolute path, .. in the middle"""
    return tar(folder(b"./d/"), file(b"./d//one", b"1"), file(b"d/./two", b"2"), file(b"/d/three", b"3"),
               file(b"d/none/../four", b"4"), folder(b"e///"), file(b"e/five", b"5"))


@dialect
def out_of_the_root():
    """.. past the root, in names and hard links"""
    return tar(file(b"../../one", b"1"), folder(b"d"), file(b"d/../../../two", b"2"), hard_link(b"three", b"../../one"),
               hard_link(b"../four", b"/d/../two"))


@dialect
def file_with_trailing_slash():
    """a file entry (kind 0) whose name ends in a slash"""
    return tar(file(b"name/", b"content"), AFTER)


@dialect
def nul_kind_with_trailing_slash():
    """kind NUL, magic ustar, a name that ends in a slash"""
    return tar(entry(b"name/", b"\0", mode=0o700), AFTER)


@dialect
def nul_kind_with_slash_in_pax():
    """kind NUL, the slash at the end in the PAX path only"""
    return tar(pax((b"path", b"pax-name/")), entry(b"x", b"\0", mode=0o700), AFTER)


@dialect
def contiguous_file():
    """kind 7, a file all the same for POSIX"""
    return tar(entry(b"contiguous", b"7", b"x"), AFTER)


@dialect
def unknown_kinds():
    """a kind that nobody knows"""
    return tar(file(b"before", b"x"), entry(b"what", b"Z", b"x"), AFTER)


@dialect
def volume_header():
    """a GNU volume header (kind V)"""
    return tar(entry(b"volume", b"V", magic=GNU), AFTER)


@dialect
def sizes_of_what_has_no_content():
    """sizes in headers of a hard link, symlink, folder and fifo"""
    return tar(file(b"one", b"x"), hard_link(b"hard", b"one", size=512), symlink(b"soft", b"one", size=3),
               folder(b"dir", size=4096), entry(b"fifo", b"6", size=9), AFTER)


@dialect
def pax_path_and_linkpath():
    """PAX records of long names; = and newline in them"""
    name = b"pax/" * 40 + b"a=b\nc"
    return tar(pax((b"path", name)), file(b"x", b"x"), pax((b"linkpath", name)), hard_link(b"hard", b"x"),
               pax((b"linkpath", b"t" * 120)), symlink(b"soft", b"x"))


@dialect
def pax_size_and_owners():
    """PAX size, uid and gid; the header has others"""
    records_of = pax((b"size", b"600"), (b"uid", b"4000000000"), (b"gid", b"70000"))
    return tar(records_of, file(b"sized", b"", size=0, uid=1) + padded(b"c" * 600), AFTER)


@dialect
def pax_times():
    """sub-second mtimes, ten digits of them, and a trailing dot"""
    return tar(*(part for number, time in enumerate([b"1500000000.123456789", b"1500000000.5", b"1500000000.1234567899",
                                                     b"1500000000."])
                 for part in (pax((b"mtime", time)), file(b"t%d" % number))))


@dialect
def pax_negative_times():
    """sub-second mtimes before 1970"""
    return tar(pax((b"mtime", b"-1.25")), file(b"old"), pax((b"mtime", b"-0.000000001")), folder(b"older"))


@dialect
def pax_bad_time():
    """an mtime that is no number"""
    return tar(pax((b"mtime", b"yesterday")), file(b"x"))


@dialect
def pax_empty_values():
    """records without a value: path, linkpath, mtime"""
    return tar(pax((b"path", b""), (b"mtime", b""), (b"uid", b"")), file(b"from-header", b"x", uid=3), AFTER)


@dialect
def pax_twice():
    """two extended headers in a row, and a keyword twice in one"""
    return tar(pax((b"path", b"first"), (b"uid", b"1")), pax((b"path", b"second")), file(b"x", b"x"),
               pax((b"gid", b"1"), (b"gid", b"2")), file(b"y", b"y"))


@dialect
def pax_length_wrong():
    """a record whose length does not lead to its newline"""
    payload = b"12 path=abc\n"
    return tar(header(b"x", b"x", size=len(payload)) + padded(payload), file(b"x"))


@dialect
def pax_empty_payload():
    """an extended header of no records"""
    return tar(header(b"x", b"x", size=0), file(b"x", b"x"), AFTER)


@dialect
def pax_vendor_and_comment():
    """records that mean nothing to an unpacker"""
    return tar(pax((b"comment", b"hi"), (b"atime", b"1.5"), (b"VENDOR.x", b"\0"), (b"hdrcharset", b"BINARY"),
                   (b"uname", b"root")), file(b"x", b"x"), AFTER)


@dialect
def pax_xattrs():
    """xattr values with newline, NUL and = in them, and without a byte"""
    values = {b"user.text": b"plain", b"user.lines": b"a\nb\n17 x=y\n", b"user.nul": b"\0a\0", b"user.empty": b""}
    return tar(pax(*(xattr(*pair) for pair in values.items())), file(b"x", b"x"),
               pax(xattr(b"user.dir", b"yes")), folder(b"d"), AFTER)


@dialect
def pax_xattr_capability():
    """a file capability, kept by chown coming first"""
    return tar(pax(xattr(b"security.capability", CAPABILITY)), file(b"ping", b"x", mode=0o755, uid=5), AFTER)


@dialect
def libarchive_xattrs():
    """xattrs as only bsdtar writes them"""
    return tar(pax(libarchive_xattr(b"user.bsd", b"value")), file(b"x", b"x"), AFTER)


@dialect
def xattr_names():
    """an xattr of a namespace that does not exist"""
    return tar(pax(xattr(b"nonsense.x", b"1"), xattr(b"user.ok", b"2")), file(b"x", b"x"), AFTER)


@dialect
def acl_xattr():
    """a POSIX ACL as an xattr"""
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *item) for item in
                                          [(1, 6, 0xFFFFFFFF), (2, 4, 77), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF),
                                           (32, 4, 0xFFFFFFFF)])
    return tar(pax(xattr(b"system.posix_acl_access", acl)), file(b"x", b"x"), AFTER)


@dialect
def global_headers():
    """global PAX records for all that follows"""
    return tar(pax((b"comment", b"0123abcd"), kind=b"g"), file(b"one", b"1"), pax((b"uid", b"99"), kind=b"g"),
               file(b"two", b"2"), pax((b"mtime", b"7"), kind=b"g"), file(b"three", b"3"))


@dialect
def sparse_old_gnu():
    """an old GNU sparse file"""
    return tar(old_gnu(b"sparse", 3000, [(512, b"a" * 512), (2048, b"b" * 952)]), AFTER)


@dialect
def sparse_old_gnu_extended():
    """an old GNU sparse file with seven runs, three of them in an extension block"""
    return tar(old_gnu(b"sparse", 8000, [(offset * 1024, b"%d" % offset * 512) for offset in range(7)]), AFTER)


def old_gnu(name, real_size, runs):
    """A kind S entry: up to four runs in the header, up to 21 in one extension block."""
    stored = b"".join(content for _, content in runs)
    described = [b"%011o\0%011o\0" % (offset, len(content)) for offset, content in runs]
    fields = [(386, b"".join(described[:4])), (482, bytes([len(runs) > 4])), (483, b"%011o\0" % real_size)]
    extension = b"".join(described[4:]).ljust(512, b"\0") if len(runs) > 4 else b""
    return header(name, b"S", size=len(stored), magic=GNU, fields=fields) + extension + padded(stored)


@dialect
def sparse_pax_0_0():
    """PAX sparse 0.0: pairs of records"""
    pairs = [(b"GNU.sparse.size", b"3000"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.offset", b"1000"),
             (b"GNU.sparse.numbytes", b"3"), (b"GNU.sparse.offset", b"2990"), (b"GNU.sparse.numbytes", b"10")]
    return tar(pax(*pairs), file(b"sparse", b"abc0123456789"), AFTER)


@dialect
def sparse_pax_0_1():
    """PAX sparse 0.1: a map in one record"""
    pairs = [(b"GNU.sparse.size", b"3000"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.map", b"1000,3,3000,0"),
             (b"GNU.sparse.name", b"real-name")]
    return tar(pax(*pairs), file(b"GNUSparseFile.0/real-name", b"abc"), AFTER)


@dialect
def sparse_pax_1_0():
    """PAX sparse 1.0: a map before the content"""
    pairs = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"real-name"),
             (b"GNU.sparse.realsize", b"5000")]
    return tar(pax(*pairs), file(b"GNUSparseFile.0/real-name", padded(b"2\n4000\n3\n5000\n0\n") + b"abc"), AFTER)


@dialect
def sparse_map_out_of_order():
    """PAX sparse 0.1 with runs that overlap"""
    pairs = [(b"GNU.sparse.size", b"3000"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.map", b"1000,3,1001,3")]
    return tar(pax(*pairs), file(b"sparse", b"abcdef"), AFTER)


@dialect
def no_end_blocks():
    """no block of zeros at the end"""
    return file(b"x", b"x") + AFTER


@dialect
def one_end_block():
    """one block of zeros at the end"""
    return file(b"x", b"x") + END[:512]


@dialect
def lone_zero_block():
    """one block of zeros between entries"""
    return tar(file(b"x", b"x"), END[:512], AFTER)


@dialect
def concatenated():
    """a second archive after the end of the first"""
    return tar(file(b"x", b"x")) + tar(AFTER)


@dialect
def junk_after_the_end():
    """bytes after the end that are no tar, no whole block of them"""
    return tar(file(b"x", b"x")) + b"junk" * 300


@dialect
def cut_in_padding():
    """the stream ends in the padding of the last file"""
    return AFTER + file(b"x", b"content")[:512 + 100]


@dialect
def only_end_blocks():
    """an archive of nothing"""
    return tar()


@dialect
def no_bytes():
    """a tar of no bytes at all"""
    return b""


@compression
def plain_tar(data):
    """no compression"""
    return data, "none"


@compression
def gzip_fixed_and_stored(data):
    """gzip of stored blocks (level 0)"""
    return gzip(data, 0), "gzip"


@compression
def gzip_header_fields(data):
    """a gzip header with extra field, name, comment and checksum"""
    start = b"\x1f\x8b\x08\x1e" + bytes(5) + b"\xff"
    fields = b"\x04\0abcd" + b"name.tar\0" + b"comment\0"
    crc = struct.pack("<H", zlib.crc32(start + fields) & 0xFFFF)
    return gzip(data, flags=0x1E, extra=fields + crc), "gzip"


@compression
def gzip_members(data):
    """gzip of several members, cut anywhere"""
    return b"".join(gzip(data[at:at + 700]) for at in range(0, len(data), 700)), "gzip"


@compression
def gzip_empty_members(data):
    """empty members before, between and after"""
    return gzip(b"") + gzip(data[:700]) + gzip(b"") * 2 + gzip(data[700:]) + gzip(b""), "gzip"


@compression
def gzip_of_bgzip(data):
    """gzip as bgzip writes it"""
    return bgzf(data), "gzip"


@compression
def gzip_then_zeros(data):
    """zeros after the last member"""
    return gzip(data) + bytes(1000), "gzip"


@compression
def gzip_then_junk(data):
    """bytes after the last member that are no gzip"""
    return gzip(data) + b"junk", "gzip"


@compression
def gzip_wrong_crc(data):
    """a wrong CRC32 at the end"""
    return gzip(data)[:-8] + gzip_trailer(b"")[:4] + gzip_trailer(data)[4:], "gzip"


@compression
def gzip_cut(data):
    """a gzip stream that ends too early"""
    return gzip(data)[:-20], "gzip"


@compression
def gzip_without_trailer(data):
    """a gzip stream whose checksum and length are cut off"""
    return gzip(data)[:-8], "gzip"


@compression
def gzip_called_tar(data):
    """gzip under the media type of a plain tar"""
    return gzip(data), "none"


@compression
def tar_called_gzip(data):
    """a plain tar under the media type of gzip"""
    return data, "gzip"


@compression
def zstd_called_gzip(data):
    """zstd under the media type of gzip"""
    return zstd(data), "gzip"


@compression
def zstd_one_frame(data):
    """zstd of one frame"""
    return zstd(data), "zstd"


@compression
def zstd_frames(data):
    """zstd of several frames"""
    return b"".join(zstd(data[at:at + 700]) for at in range(0, len(data), 700)), "zstd"


@compression
def zstd_skippable_frames(data):
    """skippable frames before, between and after"""
    frames = skippable(b"a") + zstd(data[:700]) + skippable(b"") + zstd(data[700:])
    return frames + skippable(b"z" * 300), "zstd"


@compression
def zstd_empty_frames(data):
    """frames of no content"""
    return zstd(b"") + zstd(data) + zstd(b""), "zstd"


@compression
def zstd_then_junk(data):
    """bytes after the last frame that are no zstd"""
    return zstd(data) + b"junkjunk", "zstd"


@compression
def zstd_cut(data):
    """a zstd stream that ends too early"""
    return zstd(data)[:-600], "zstd"
