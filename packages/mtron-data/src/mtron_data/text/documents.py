"""All documents of all sources, one after the other."""

from collections.abc import Iterator, Sequence

from mtron_data.text.pieces import plan_pieces, read_piece
from mtron_data.text.sources import Source


def read_documents(sources: Sequence[Source], key: str = "text") -> Iterator[str]:
    """Yield the documents of `sources` in order, a piece in memory at a time.

    Args:
        sources: from `find_sources`.
        key: of the text in a line of JSONL.

    Raises:
        ValueError: a document is malformed; file and line are named.
        OSError: a file cannot be read.
    """
    lines_before = [0] * len(sources)
    for group in plan_pieces(sources):
        for piece in group:
            documents = read_piece(piece, key)
            yield from documents.texts
            if documents.error is not None:
                line, message = documents.error
                raise ValueError(
                    f"{piece.path}: line {lines_before[piece.source] + line}: {message}"
                )
            lines_before[piece.source] += documents.num_lines
