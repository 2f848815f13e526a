import zipfile
import zlib
from pathlib import Path

import pytest

from mtron_ckpt.zip_format import (
    central_header,
    central_header_bytes,
    end_records,
    local_header,
    payload_position,
)


def write_zip(path: Path, members: list[tuple[bytes, bytes, int, int]]) -> list[int]:
    """Write members (name, payload, alignment, gap before it); return payload positions."""
    positions, directory = [], b""
    with path.open("wb") as file:
        for name, payload, alignment, gap in members:
            header = file.tell() + gap
            position = payload_position(header, name, alignment)
            file.seek(header)
            crc = zlib.crc32(payload)
            file.write(local_header(name, crc, len(payload), position - header))
            assert file.tell() == position
            file.write(payload)
            positions.append(position)
            entry = central_header(name, crc, len(payload), header)
            assert len(entry) == central_header_bytes(name, header)
            directory += entry
        start = file.tell()
        file.write(directory + end_records(len(members), start, len(directory)))
    return positions


def check(path: Path, members: list[tuple[bytes, bytes, int, int]]) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [name.decode() for name, *_ in members]
        for name, payload, *_ in members:
            assert archive.read(name.decode()) == payload


def test_python_reads_it_and_payloads_are_aligned(tmp_path):
    members = [
        (b"a" * (1 + n), bytes([n]) * (7 * n), alignment, 0)
        for n in range(130)
        for alignment in [(1, 64, 4096)[n % 3]]
    ]
    positions = write_zip(tmp_path / "x.zip", members)
    check(tmp_path / "x.zip", members)
    for position, (_, _, alignment, _) in zip(positions, members, strict=True):
        assert position % alignment == 0


@pytest.mark.parametrize("gap", [2**32 - 40, 2**32 - 1, 2**32 + 5])
def test_members_beyond_4_gib(tmp_path, gap):
    members = [(b"first", b"1234", 64, 0), (b"far", b"5678", 64, gap), (b"last", b"9", 4096, 0)]
    write_zip(tmp_path / "x.zip", members)  # a sparse file: the gap takes no space
    check(tmp_path / "x.zip", members)


def test_more_members_than_the_old_format_can_count(tmp_path):
    body, directory = bytearray(), bytearray()
    count = 65535
    for n in range(count):
        name = b"%d" % n
        directory += central_header(name, 0, 0, len(body))
        body += local_header(name, 0, 0, payload_position(0, name, 1))
    end = end_records(count, len(body), len(directory))
    (tmp_path / "x.zip").write_bytes(bytes(body + directory) + end)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert len(archive.namelist()) == count
    assert len(end_records(count - 1, 0, 0)) == 22 < len(end)
