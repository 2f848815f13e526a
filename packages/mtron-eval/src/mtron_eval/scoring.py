"""What a task needs of a model, and how windows are given to it in batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

Progress = Callable[[int, int], None]
"""Called with the tokens done and the tokens to do."""


class Encoder(Protocol):
    """The part of a tokenizer that scoring needs."""

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document, if there is one."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Token ids of each text, without special tokens."""
        ...


class Scorer(Protocol):
    """A model that can say how probable given tokens are."""

    @property
    def tokenizer(self) -> Encoder:
        """Its tokenizer."""
        ...

    @property
    def max_context(self) -> int:
        """Most tokens that it reads before the one that it predicts."""
        ...

    def score(self, token_ids: Sequence[Sequence[int]]) -> Sequence[np.ndarray]:
        """Log-probabilities in nats of each token given those before it.

        Args:
            token_ids: sequences of at least two tokens.

        Returns:
            for each sequence of length n, an array of length n - 1.
        """
        ...


def score_in_batches(
    scorer: Scorer,
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    progress: Progress | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Scores sequences, those of similar length together, the longest first.

    Args:
        scorer: the model.
        sequences: token ids, at least two each.
        batch_size: sequences scored together.
        progress: told about tokens done.

    Yields:
        the index of each sequence, once, and the log-probabilities in nats of all of its tokens
        but the first, fp64 `[length - 1]`.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    total, done = sum(map(len, sequences)), 0
    for start in range(0, len(sequences), batch_size):
        indices = order[start : start + batch_size]
        batch = [sequences[index] for index in indices]
        for index, scores in zip(indices, scorer.score(batch), strict=True):
            values = np.asarray(scores, dtype=np.float64)
            assert values.shape == (len(sequences[index]) - 1,), "one score per token"
            yield index, values
        done += sum(map(len, batch))
        if progress is not None:
            progress(done, total)
