"""Samples for next-token prediction."""

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from mtron_data.batch import Batch, Sample
from mtron_data.indexed.dataset import TokenDataset
from mtron_data.order.protocol import Order, Piece
from mtron_data.order.sequential import SequentialOrder
from mtron_data.order.stream import StreamOrder

PAD = 0
"""Token and label of padding; the loss mask is 0 there."""


class GPTDataset:
    """Samples of `seq_len` tokens and their successors, cut from a corpus across documents.

    Neighbouring windows share the one token that is the label of the first and the input of the
    second.

    Args:
        path: a prepared dataset, see `TokenDataset`, or an opened one.
        seq_len: tokens per sample.
        seed: of the shuffle; `sequential` has none.
        order: `stream` is shuffled and has no end, see `StreamOrder`; `sequential` goes once from
            the first token to the last and pads the last sample, for validation.
        reset_positions: count positions from the beginning of each document instead of each row.

    Raises:
        ValueError: the dataset is damaged or shorter than one sample, or an argument is wrong.
        OSError: a file cannot be read.
    """

    def __init__(
        self,
        path: str | Path | TokenDataset,
        seq_len: int,
        seed: int = 0,
        order: Literal["stream", "sequential"] = "stream",
        *,
        reset_positions: bool = False,
    ) -> None:
        self.tokens = path if isinstance(path, TokenDataset) else TokenDataset(path)
        """The corpus."""
        self.seq_len = seq_len
        """Tokens per sample."""
        self.seed = operator.index(seed)
        """Of the shuffle."""
        self.order: Literal["stream", "sequential"] = order
        """Name of the order."""
        self._reset_positions = reset_positions
        self._order: Order = _build_order(self.tokens, seq_len, self.seed, order)
        manifest = self.tokens.manifest
        self._vocab_size = None if manifest is None else manifest.tokenizer.vocab_size
        self._signed = self.tokens.dtype.kind == "i"

    @property
    def num_samples(self) -> int | None:
        """Samples that there are; none for an order without end."""
        return self._order.num_samples

    @property
    def samples_per_epoch(self) -> int:
        """Samples in one pass over the corpus."""
        if isinstance(self._order, StreamOrder):
            return self._order.samples_per_epoch
        assert self.num_samples is not None
        return self.num_samples

    def __len__(self) -> int:
        if self.num_samples is None:
            raise TypeError("the stream order has no end; use samples_per_epoch")
        return self.num_samples

    def __getitem__(self, index: int) -> Sample:
        """Return the sample with the global index `index`, at least 0."""
        batch = self.batch([index])
        return Sample(
            tokens=batch["tokens"][0],
            labels=batch["labels"][0],
            loss_mask=batch["loss_mask"][0],
            positions=batch["positions"][0],
            sample_id=int(batch["sample_ids"][0]),
            cu_seqlens=batch["cu_seqlens"],
            max_seqlen=batch["max_seqlen"],
        )

    def batch(self, indices: Iterable[int]) -> Batch:
        """Return several samples.

        Args:
            indices: global sample indices, at least one, each at least 0.

        Raises:
            IndexError: there is no such sample.
            ValueError: the corpus holds an id that its tokenizer does not have.
        """
        wanted = [operator.index(index) for index in indices]
        for index in wanted:
            if index < 0 or (self.num_samples is not None and index >= self.num_samples):
                raise IndexError(f"sample {index} of {self.num_samples or 'a stream'}")
        samples = self._order.pieces(wanted)
        shape = (len(wanted), self.seq_len)
        tokens, labels = np.empty(shape, np.int64), np.empty(shape, np.int64)
        loss_mask = np.ones(shape, np.float32)
        starts = [0]
        for row, pieces in enumerate(samples):
            source = self._source(pieces)
            valid = len(source) - 1
            tokens[row, : valid + 1] = source[: self.seq_len]
            labels[row, :valid] = source[1:]
            tokens[row, valid + 1 :] = labels[row, valid:] = PAD
            loss_mask[row, valid:] = 0
            starts += [row * self.seq_len + at for at in self._boundaries(pieces)]
            starts.append((row + 1) * self.seq_len)
        cu_seqlens = np.array(starts, np.int32)
        return Batch(
            tokens=tokens,
            labels=labels,
            loss_mask=loss_mask,
            positions=self._positions(len(wanted), cu_seqlens),
            sample_ids=np.array(wanted, np.int64),
            cu_seqlens=cu_seqlens,
            max_seqlen=int(np.diff(cu_seqlens).max()),
        )

    def _source(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Return the tokens of a sample, `[at most seq_len + 1]`."""
        corpus = self.tokens.tokens
        if len(pieces) == 1:
            source = corpus[pieces[0].start : pieces[0].stop]
        else:
            source = np.concatenate([corpus[start:stop] for start, stop in pieces])
        if self._vocab_size is not None and (
            source.max() >= self._vocab_size or (self._signed and source.min() < 0)
        ):
            self._refuse_ids(source, pieces)
        return source

    def _boundaries(self, pieces: Sequence[Piece]) -> list[int]:
        """Return where documents, and padding, begin among the inputs of a row, 0 left out."""
        found: list[int] = []
        at = 0
        for start, stop in pieces:
            found.append(at)
            found += (at + self.tokens.document_starts(start, stop) - start).tolist()
            at += stop - start
        found.append(at)
        return [offset for offset in found if 0 < offset < self.seq_len]

    def _positions(self, batch: int, cu_seqlens: np.ndarray) -> np.ndarray:
        shape = (batch, self.seq_len)
        if not self._reset_positions:
            return np.broadcast_to(np.arange(self.seq_len, dtype=np.int64), shape).copy()
        starts = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens)).astype(np.int64)
        flat = np.arange(batch * self.seq_len, dtype=np.int64) - starts
        return flat.reshape(shape)

    def _refuse_ids(self, source: np.ndarray, pieces: Sequence[Piece]) -> NoReturn:
        at = int(np.flatnonzero((source >= self._vocab_size) | (source < 0))[0])
        offset = np.concatenate([np.arange(start, stop) for start, stop in pieces])[at]
        raise ValueError(
            f"{self.tokens.bin_path}: byte {offset * self.tokens.dtype.itemsize}: token id "
            f"{source[at]} is not in the tokenizer's vocabulary of {self._vocab_size}; the file is "
            "damaged or belongs to another tokenizer: prepare it again"
        )


def _build_order(tokens: TokenDataset, seq_len: int, seed: int, order: str) -> Order:
    if seq_len < 1:
        raise ValueError(f"seq_len: must be at least 1, got {seq_len}")
    if order not in ("stream", "sequential"):
        raise ValueError(f"order: must be stream or sequential, got {order!r}")
    least = seq_len + 1 if order == "stream" else 2
    if tokens.num_tokens < least:
        raise ValueError(
            f"{tokens.bin_path}: holds {tokens.num_tokens} tokens, less than the {least} of one "
            f"sample (seq_len = {seq_len}); prepare more text or use a smaller seq_len"
        )
    if order == "stream":
        return StreamOrder(tokens.num_tokens, seq_len, seed)
    return SequentialOrder(tokens.num_tokens, seq_len)
