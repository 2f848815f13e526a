"""Writes a planned data file window by window, computing checksums while the bytes are hot."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from crc32c import crc32c
from isal.isal_zlib import crc32, crc32_combine

from mtron_ckpt.index import Written, WrittenPiece
from mtron_ckpt.layout import Chunk, FilePlan, Member
from mtron_ckpt.manifest import FileRecord
from mtron_ckpt.storage import write_at
from mtron_ckpt.zarr_json import CHECKSUM_BYTES
from mtron_ckpt.zip_format import central_header, end_records, local_header


class DataFileWriter:
    """One data file in the making.

    Checksums and writes let other threads run: they hold the interpreter lock only between
    the members of a window.

    Args:
        path: the file to create.
        plan: where everything in it will be.
    """

    def __init__(self, path: Path, plan: FilePlan) -> None:
        self._plan = plan
        self._crc32 = 0
        self._directory: list[bytes] = []
        self._checksums: dict[str, list[tuple[int, int]]] = {p.key: [] for p in plan.pieces}
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, window: Sequence[Member], buffer: memoryview) -> None:
        """Complete a staged window with headers and checksums, and write it.

        Args:
            window: the next members of the plan.
            buffer: the bytes of the file from the first member's header to the last's end.

        Raises:
            OSError: the system refused, for instance because no space is left.
        """
        start = window[0].header
        for member in window:
            payload = buffer[member.payload - start : member.stop - start]
            if isinstance(member.content, Chunk):
                values = payload[:-CHECKSUM_BYTES]
                checksum = crc32c(values)
                payload[-CHECKSUM_BYTES:] = checksum.to_bytes(CHECKSUM_BYTES, "little")
                self._checksums[member.content.piece.key].append((member.payload, checksum))
            digest = crc32(payload)
            header = local_header(member.name, digest, member.size, member.payload - member.header)
            buffer[member.header - start : member.payload - start] = header
            self._crc32 = crc32_combine(crc32(header, self._crc32), digest, member.size)
            entry = central_header(member.name, digest, member.size, member.header)
            self._directory.append(entry)
        write_at(self._file, buffer, start)

    def finish(self, name: str) -> Written:
        """Write the directory of the file and make the file durable.

        Args:
            name: path of the file within the checkpoint.

        Returns:
            What the manifest and the index will say about it.
        """
        plan = self._plan
        entries = b"".join(self._directory)
        tail = entries + end_records(len(plan.members), plan.directory, len(entries))
        assert plan.directory + len(tail) == plan.size
        write_at(self._file, memoryview(tail), plan.directory)
        os.fsync(self._file)
        return Written(
            file=FileRecord(path=name, size=plan.size, crc32=crc32(tail, self._crc32)),
            pieces=tuple(
                WrittenPiece(
                    name=piece.array.name,
                    offset=piece.box.offset,
                    shape=piece.box.shape,
                    chunk_shape=piece.chunk_shape,
                    chunks=tuple(self._checksums[piece.key]),
                )
                for piece in plan.pieces
            ),
        )

    def close(self) -> None:
        """Close the file; what it holds is durable already or will be deleted."""
        with contextlib.suppress(OSError):
            os.close(self._file)
