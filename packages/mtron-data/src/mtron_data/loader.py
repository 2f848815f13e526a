"""Batches in order, read ahead, resumable at any sample."""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np

from mtron_data.batch import Batch
from mtron_data.gpt import GPTDataset

_VERSION = 1


class Loader:
    """Iterates over micro-batches of a dataset, or over those of one data-parallel rank.

    The position is one number, the global sample cursor: how many samples the whole job has
    consumed. Micro-batches are taken in order: of each `dp_size` of them rank `dp_rank` reads its
    own and no other, and all ranks advance the cursor by all of them. So the samples of a global
    batch, their order and the state are the same whatever the number of ranks.

    A thread reads ahead. Close the loader, or use it as a context manager, to end it early.

    Args:
        dataset: gives the samples.
        micro_batch_size: samples per batch; the last one of a finite dataset may have fewer.
        cursor: samples to skip, because they were consumed before.
        state: from `state()` of an earlier loader, to go on where that one was; instead of
            `cursor`.
        indices: sample indices to iterate over, instead of all in order.
        prefetch: batches to read ahead; 0 reads each when it is asked for.
        dp_rank: number of this data-parallel rank.
        dp_size: number of data-parallel ranks. At the end of a finite dataset some of them may
            get a batch more than others.

    Raises:
        ValueError: an argument is wrong, or `state` belongs to other data, another seed, order or
            sequence length.
    """

    def __init__(
        self,
        dataset: GPTDataset,
        micro_batch_size: int,
        cursor: int = 0,
        *,
        state: Mapping[str, Any] | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        prefetch: int = 2,
        dp_rank: int = 0,
        dp_size: int = 1,
    ) -> None:
        for name, value, least in (
            ("micro_batch_size", micro_batch_size, 1),
            ("cursor", cursor, 0),
            ("prefetch", prefetch, 0),
            ("dp_rank", dp_rank, 0),
            ("dp_size", dp_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: must be at least {least}, got {value}")
        if dp_rank >= dp_size:
            raise ValueError(f"dp_rank: must be less than dp_size = {dp_size}, got {dp_rank}")
        self._dataset = dataset
        self._micro_batch_size = micro_batch_size
        self._indices = None if indices is None else _checked(indices, dataset.num_samples)
        self._end = dataset.num_samples if self._indices is None else len(self._indices)
        self._identity = _identity(dataset, self._indices)
        if state is not None:
            if cursor:
                raise ValueError(
                    f"cursor: is part of the state, got {cursor} too; give one of them"
                )
            cursor = _resume(state, self._identity)
        if self._end is not None and cursor > self._end:
            raise ValueError(f"cursor: is beyond the {self._end} samples, got {cursor}")
        self._consumed = cursor
        self._planned = cursor
        self._prefetch = prefetch
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._pending: deque[tuple[Future[Batch], int]] = deque()
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    @property
    def cursor(self) -> int:
        """Samples consumed, those before `cursor=` included; what is read ahead does not count."""
        return self._consumed

    def state(self) -> dict[str, Any]:
        """Return a small JSON-able dictionary from which a new loader goes on."""
        return {"version": _VERSION, "cursor": self._consumed, **self._identity}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("loader: is closed; make a new one from its state")
        try:
            batch, self._consumed = self._read()
        except StopIteration:
            self._consumed = self._planned
            raise
        except BaseException:
            # The next call must give this very batch, or fail like this one.
            self._pending.clear()
            self._planned = self._consumed
            raise
        return batch

    def close(self) -> None:
        """Stop reading ahead and forget what was read; `state` keeps working."""
        self._closed = True
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> tuple[Batch, int]:
        """Return the next batch, and the cursor when all ranks have read theirs."""
        if self._prefetch == 0:
            if not len(indices := self._plan()):
                raise StopIteration
            return self._dataset.batch(indices), self._planned
        self._read_ahead()
        if not self._pending:
            raise StopIteration
        future, cursor = self._pending.popleft()
        batch = future.result()
        self._read_ahead()
        return batch, cursor

    def _read_ahead(self) -> None:
        while len(self._pending) < self._prefetch and len(indices := self._plan()):
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, "mtron-data-prefetch")
            self._pending.append(
                (self._executor.submit(self._dataset.batch, indices), self._planned)
            )

    def _plan(self) -> Sequence[int]:
        """Return the samples of the next micro-batch that nobody reads yet; none at the end."""
        size = self._micro_batch_size
        start, after = self._planned + self._dp_rank * size, self._planned + self._dp_size * size
        stop = start + size
        if self._end is not None:
            start, stop, after = (min(position, self._end) for position in (start, stop, after))
        self._planned = after
        return range(start, stop) if self._indices is None else self._indices[start:stop].tolist()


def _checked(indices: Sequence[int] | np.ndarray, num_samples: int | None) -> np.ndarray:
    chosen = np.asarray(indices, np.int64)
    limit = np.iinfo(np.int64).max if num_samples is None else num_samples - 1
    wrong = chosen[(chosen < 0) | (chosen > limit)]
    if wrong.size:
        raise ValueError(f"indices: must be samples from 0 to {limit}, got {wrong[0]}")
    return chosen


def _identity(dataset: GPTDataset, indices: np.ndarray | None) -> dict[str, Any]:
    """Return what decides the sequence of samples."""
    identity: dict[str, Any] = {
        "dataset": dataset.tokens.fingerprint,
        "order": dataset.order,
        "seed": dataset.seed,
        "seq_len": dataset.seq_len,
    }
    if indices is not None:
        identity["indices"] = hashlib.blake2b(indices.tobytes(), digest_size=16).hexdigest()
    return identity


def _resume(state: Mapping[str, Any], identity: Mapping[str, Any]) -> int:
    """Return the cursor of `state` after checking that it belongs to the same samples."""
    if state.get("version") != _VERSION:
        raise ValueError(
            f"state.version: must be {_VERSION}, got {state.get('version')!r}; resume with the "
            "mtron-data that wrote it"
        )
    for name in sorted({*identity, *state} - {"version", "cursor"}):
        if state.get(name) != identity.get(name):
            raise ValueError(
                f"state.{name}: the state was saved with {state.get(name)!r}, got "
                f"{identity.get(name)!r}; resume with the same data, seed, order and sequence "
                "length, or start a new run"
            )
    cursor = state.get("cursor")
    if not isinstance(cursor, int) or isinstance(cursor, bool) or cursor < 0:
        raise ValueError(f"state.cursor: must be a number of samples, got {cursor!r}")
    return cursor
