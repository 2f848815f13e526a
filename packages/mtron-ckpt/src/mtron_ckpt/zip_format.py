"""The records of a ZIP file whose members are stored, not compressed.

Written by hand because the positions of all members are planned before any byte is known and
checksums come from faster code than `zipfile` uses. `docs/checkpoint-format.md` has the fields.
"""

import struct

LOCAL_HEADER_BYTES = 30
_CENTRAL_HEADER_BYTES = 46
_PADDING_ID = 0xD935  # the alignment field of Android's zipalign; every reader skips it
_PADDING_MIN_BYTES = 6
_ZIP64_ID = 0x0001
_MAX_16 = 0xFFFF
_MAX_32 = 0xFFFFFFFF
_MADE_BY_UNIX = 3 << 8
_PLAIN_FILE = 0o100644 << 16
_DATE_1980 = 0x0021  # fixed, so that equal contents give equal bytes
_VERSION = 20
_VERSION_ZIP64 = 45


def payload_position(header: int, name: bytes, alignment: int) -> int:
    """Return where the payload of a member may begin whose local header is at `header`.

    Args:
        header: position of the local header in the file.
        name: name of the member.
        alignment: the position returned is a multiple of it.
    """
    end = header + LOCAL_HEADER_BYTES + len(name)
    position = -(-end // alignment) * alignment
    if 0 < position - end < _PADDING_MIN_BYTES:
        position += -(-_PADDING_MIN_BYTES // alignment) * alignment
    return position


def local_header(name: bytes, crc32: int, size: int, length: int) -> bytes:
    """Return the local header of a member.

    Args:
        name: name of the member.
        crc32: CRC-32 of the payload.
        size: bytes of the payload, under 4 GiB.
        length: bytes that the header shall fill, padding included.
    """
    padding = length - LOCAL_HEADER_BYTES - len(name)
    extra = b""
    if padding:
        extra = struct.pack("<HH", _PADDING_ID, padding - 4).ljust(padding, b"\0")
    fixed = struct.pack(
        "<4sHHHHHIIIHH",
        b"PK\3\4",
        _VERSION,
        0,  # flags
        0,  # stored
        0,  # time
        _DATE_1980,
        crc32,
        size,
        size,
        len(name),
        padding,
    )
    return fixed + name + extra


def central_header(name: bytes, crc32: int, size: int, header: int) -> bytes:
    """Return the directory entry of the member whose local header is at `header`."""
    far = header >= _MAX_32
    extra = struct.pack("<HHQ", _ZIP64_ID, 8, header) if far else b""
    fixed = struct.pack(
        "<4sHHHHHHIIIHHHHHII",
        b"PK\1\2",
        _MADE_BY_UNIX | _VERSION_ZIP64,
        _VERSION_ZIP64 if far else _VERSION,
        0,  # flags
        0,  # stored
        0,  # time
        _DATE_1980,
        crc32,
        size,
        size,
        len(name),
        len(extra),
        0,  # comment
        0,  # disk
        0,  # internal attributes
        _PLAIN_FILE,
        _MAX_32 if far else header,
    )
    return fixed + name + extra


def central_header_bytes(name: bytes, header: int) -> int:
    """Return the length of `central_header` for these arguments."""
    return _CENTRAL_HEADER_BYTES + len(name) + (12 if header >= _MAX_32 else 0)


def end_records(count: int, directory: int, directory_bytes: int) -> bytes:
    """Return what follows the directory: the end record, preceded by ZIP64's where needed.

    Args:
        count: number of members.
        directory: position of the central directory.
        directory_bytes: its length.
    """
    zip64 = b""
    if count >= _MAX_16 or directory >= _MAX_32 or directory_bytes >= _MAX_32:
        zip64 = struct.pack(
            "<4sQHHIIQQQQ",
            b"PK\6\6",
            44,
            _MADE_BY_UNIX | _VERSION_ZIP64,
            _VERSION_ZIP64,
            0,
            0,
            count,
            count,
            directory_bytes,
            directory,
        ) + struct.pack("<4sIQI", b"PK\6\7", 0, directory + directory_bytes, 1)
    return zip64 + struct.pack(
        "<4sHHHHIIH",
        b"PK\5\6",
        0,
        0,
        min(count, _MAX_16),
        min(count, _MAX_16),
        min(directory_bytes, _MAX_32),
        min(directory, _MAX_32),
        0,
    )
