"""Tars written byte by byte: headers that no archiver writes, and those that old ones did."""

import base64
import struct
import urllib.parse
import zlib

BLOCK = 512
END = bytes(2 * BLOCK)
MTIME = 1_600_000_000  # of every entry that says nothing else

V7, USTAR, GNU = b"", b"ustar\x0000", b"ustar  \x00"


def octal(number, width):
    """A number as tar writes it: octal digits and a NUL."""
    return b"%0*o\0" % (width - 1, number)


def base256(number, width):
    """A number as GNU tar writes what octal cannot say."""
    return bytes([0xFF if number < 0 else 0x80]) + number.to_bytes(width - 1, "big", signed=number < 0)


def header(name, kind, *, size=0, mode=0o644, uid=0, gid=0, mtime=MTIME, link=b"", magic=USTAR, device=(0, 0),
           fields=(), checksum=sum):
    """One block. `fields` are (offset, bytes) written over it before the checksum is taken."""
    block = bytearray(BLOCK)

    def put(offset, value, width):
        assert len(value) <= width, value
        block[offset:offset + len(value)] = value

    def number(offset, value, width):
        fits = 0 <= value < 8 ** (width - 1)
        put(offset, octal(value, width) if fits else base256(value, width), width)

    put(0, name, 100)
    number(100, mode, 8)
    number(108, uid, 8)
    number(116, gid, 8)
    number(124, size, 12)
    number(136, mtime, 12)
    put(156, kind, 1)
    put(157, link, 100)
    put(257, magic, 8)
    if magic:
        number(329, device[0], 8)
        number(337, device[1], 8)
    for offset, value in fields:
        put(offset, value, BLOCK - offset)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % checksum(block)
    return bytes(block)


def signed_sum(block):
    """The checksum of old Sun tars."""
    return sum(byte - 256 if byte >= 0x80 else byte for byte in block)


def padded(content):
    """Content, filled up to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def records(pairs):
    """PAX records of (keyword, value)."""
    out = b""
    for keyword, value in pairs:
        rest = b" " + keyword + b"=" + value + b"\n"
        length = len(rest)
        while len(b"%d" % length) + len(rest) != length:
            length = len(b"%d" % length) + len(rest)
        out += b"%d" % length + rest
    return out


def pax(*pairs, kind=b"x"):
    """An extended header, or with kind `g` a global one."""
    payload = records(pairs)
    return header(b"PaxHeaders/x", kind, size=len(payload)) + padded(payload)


def gnu_long(kind, name):
    """A GNU header of kind L or K with the name that is too long."""
    payload = name + b"\0"
    return header(b"././@LongLink", kind, size=len(payload), mtime=0, magic=GNU) + padded(payload)


def entry(name, kind=b"0", content=b"", **options):
    """A header and its content."""
    options.setdefault("size", len(content))
    return header(name, kind, **options) + padded(content)


def file(name, content=b"", **options):
    return entry(name, b"0", content, **options)


def folder(name, **options):
    return entry(name, b"5", **{"mode": 0o755, **options})


def symlink(name, target, **options):
    return entry(name, b"2", link=target, **{"mode": 0o777, **options})


def hard_link(name, target, **options):
    return entry(name, b"1", link=target, **options)


def xattr(name, value):
    """The PAX record of an extended attribute."""
    return b"SCHILY.xattr." + name, value


def libarchive_xattr(name, value):
    """The same as bsdtar writes it."""
    quoted = urllib.parse.quote(name).encode()
    return b"LIBARCHIVE.xattr." + quoted, base64.b64encode(value).rstrip(b"=")


def tar(*entries):
    """A whole archive."""
    return b"".join(entries) + END


def gzip(data, level=6, *, flags=0, extra=b""):
    """One gzip member; `flags` and `extra` go into its header."""
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = deflate.compress(data) + deflate.flush()
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(5) + b"\xff" + extra + body + gzip_trailer(data)


def gzip_trailer(data):
    return struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


BGZF_END = gzip(b"", flags=4, extra=bytes.fromhex("0600 4243 0200 1b00"))


def bgzf(data):
    """gzip as bgzip writes it: members of at most 64 KiB that state their length, an empty one last."""
    out = b""
    for offset in range(0, len(data), 0xFF00):
        part = data[offset:offset + 0xFF00]
        size = len(gzip(part)) + 8
        out += gzip(part, flags=4, extra=bytes.fromhex("0600 4243 0200") + struct.pack("<H", size - 1))
    return out + BGZF_END


def zstd(data):
    """One frame of raw blocks; the content size is stated."""
    out = b"\x28\xb5\x2f\xfd" + b"\xa0" + struct.pack("<I", len(data))
    parts = [data[offset:offset + (1 << 16)] for offset in range(0, len(data), 1 << 16)] or [b""]
    for number, part in enumerate(parts, 1):
        out += struct.pack("<I", len(part) << 3 | (number == len(parts)))[:3] + part
    return out


def skippable(data):
    """A zstd frame that decoders skip."""
    return struct.pack("<II", 0x184D2A50, len(data)) + data
