"""Adds up what comes in from the pieces of all sources."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mtron_data.manifest import SourceRecord
from mtron_data.preparation.encode import Encoded
from mtron_data.text.pieces import file_digest
from mtron_data.text.sources import Source


@dataclass
class _State:
    """What is known of a source so far."""

    num_lines: int = 0
    num_documents: int = 0
    digests: list[bytes] = field(default_factory=list)


class Tally:
    """Counts over all sources, fed with the groups in order.

    Args:
        sources: the input files.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._states = [_State() for _ in sources]
        self.total_bytes = sum(source.num_bytes for source in sources)
        """Size of all sources."""
        self.num_bytes = 0
        """Bytes of them done so far."""
        self.num_empty = 0
        """Documents without any token."""
        self.text_bytes = 0
        """Size of all texts in UTF-8."""

    def add(self, encoded: Encoded) -> None:
        """Count a group.

        Raises:
            ValueError: it has a document that could not be read; file and line are named.
        """
        for record in encoded.pieces:
            state = self._states[record.source]
            state.num_lines += record.num_lines
            state.num_documents += record.num_documents
            state.digests.append(record.digests)
            self.num_bytes += record.num_bytes
        if (failure := encoded.failure) is not None:
            line = self._states[failure.source].num_lines + failure.line
            raise ValueError(
                f"{self._sources[failure.source].path}: line {line}: {failure.message}"
            )
        self.num_empty += int((encoded.lengths == 0).sum())
        self.text_bytes += encoded.text_bytes

    def records(self) -> list[SourceRecord]:
        """Return the manifest's entries of the sources."""
        return [
            SourceRecord(
                path=str(source.path),
                kind=source.kind,
                num_bytes=source.num_bytes,
                digest=file_digest(state.digests),
                num_documents=state.num_documents,
            )
            for source, state in zip(self._sources, self._states, strict=True)
        ]
