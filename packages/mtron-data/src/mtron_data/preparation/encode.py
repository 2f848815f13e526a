"""Encodes pieces of text; a pure function that any process can run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mtron_data.text.pieces import Piece, read_piece
from mtron_data.tokenizer.protocol import Tokenizer


@dataclass(frozen=True)
class PieceRecord:
    """What a piece held.

    Attributes:
        source: number of its file.
        num_bytes: its size.
        num_lines: lines that begin in it.
        num_documents: documents in it.
        digests: of its blocks, joined.
    """

    source: int
    num_bytes: int
    num_lines: int
    num_documents: int
    digests: bytes


@dataclass(frozen=True)
class Failure:
    """A document that cannot be read.

    Attributes:
        source: number of its file.
        line: from 1, counted from the first line of its piece.
        message: what is wrong with it.
    """

    source: int
    line: int
    message: str


@dataclass(frozen=True)
class Encoded:
    """The tokens of a group of pieces.

    Attributes:
        tokens: of all documents, one after the other.
        lengths: tokens of each document, int64; 0 for an empty one.
        text_bytes: size of the texts in UTF-8.
        pieces: in order; those after a failure are missing.
        failure: the first document that cannot be read, if any.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    pieces: tuple[PieceRecord, ...]
    failure: Failure | None


def encode_pieces(
    pieces: Sequence[Piece], tokenizer: Tokenizer, key: str, eos_id: int | None, dtype: np.dtype
) -> Encoded:
    """Read and encode the documents of `pieces`.

    Args:
        pieces: a group from `plan_pieces`.
        tokenizer: gives the ids.
        key: of the text in a line of JSONL.
        eos_id: appended to every document that is not empty; none appends nothing.
        dtype: of the tokens.

    Raises:
        ValueError: a file has changed since the plan.
        OSError: a file cannot be read.
    """
    texts: list[str] = []
    records: list[PieceRecord] = []
    failure = None
    for piece in pieces:
        documents = read_piece(piece, key)
        texts += documents.texts
        if documents.error is not None:
            failure = Failure(piece.source, *documents.error)
            break
        records.append(
            PieceRecord(
                piece.source,
                piece.stop - piece.start,
                documents.num_lines,
                len(documents.texts),
                documents.digests,
            )
        )
    # After a failure nothing is written, so its tokens are not needed.
    tokens, lengths = encode_texts([] if failure else texts, tokenizer, eos_id, dtype)
    text_bytes = sum(len(text.encode("utf-8")) for text in texts)
    return Encoded(tokens, lengths, text_bytes, tuple(records), failure)


def encode_texts(
    texts: Sequence[str], tokenizer: Tokenizer, eos_id: int | None, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Encode documents into flat arrays.

    Returns:
        Tokens `[tokens]` of `dtype`, and the length of each document `[documents]`, int64.
    """
    ids = tokenizer.encode_batch(texts)
    if eos_id is not None:
        for document in ids:
            if document:
                document.append(eos_id)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), dtype, int(lengths.sum())), lengths
