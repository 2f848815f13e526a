"""Encodes groups of pieces in one process or several; results come in the order of the groups."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtron_data.preparation.encode import Encoded, encode_pieces
from mtron_data.text.pieces import Piece
from mtron_data.tokenizer.huggingface import HuggingFaceTokenizer

_GROUPS_PER_WORKER = 3


@dataclass(frozen=True)
class Job:
    """What a worker must know, as data that can be sent to it.

    Attributes:
        tokenizer_files: contents by name.
        tokenizer_source: where they came from, for messages.
        key: of the text in a line of JSONL.
        eos_id: appended to every document; none appends nothing.
        dtype: of the tokens.
    """

    tokenizer_files: Mapping[str, bytes]
    tokenizer_source: Path
    key: str
    eos_id: int | None
    dtype: np.dtype

    def encoder(self) -> Callable[[tuple[Piece, ...]], Encoded]:
        """Return the function that encodes a group."""
        tokenizer = HuggingFaceTokenizer(self.tokenizer_files, self.tokenizer_source)
        return lambda group: encode_pieces(group, tokenizer, self.key, self.eos_id, self.dtype)


def encode_groups(groups: Iterable[tuple[Piece, ...]], job: Job, workers: int) -> Iterator[Encoded]:
    """Encode groups of pieces; results come in order, so they do not depend on `workers`.

    Args:
        groups: from `plan_pieces`, consumed a few ahead of the results.
        job: what to do with them.
        workers: processes; 1 encodes in this one, on threads of the tokenizer library.

    Raises:
        ValueError: a file has changed since the plan.
        OSError: a file cannot be read, or a worker died.
    """
    if workers == 1:
        yield from map(job.encoder(), groups)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(job,)
    )
    pending: deque[Future[Encoded]] = deque()
    try:
        for group in groups:
            with _interrupts_held():
                pending.append(pool.submit(_encode, group))
            if len(pending) >= _GROUPS_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise ChildProcessError(
            "workers: a worker process died; if memory ran out use fewer workers, and if this is "
            'a script put its code under `if __name__ == "__main__":`'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that never see Ctrl-C, which reaches all processes of a terminal.

    They inherit the blocked signal; the parent alone decides what to do about it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Worker:
    """The state of a worker process, set once by its initializer."""

    encode: Callable[[tuple[Piece, ...]], Encoded] | None = None


_worker = _Worker()


def _start_worker(job: Job) -> None:
    # The processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.encode = job.encoder()


def _end_with_parent() -> None:
    """End this process when a killed parent can no longer do it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(group: tuple[Piece, ...]) -> Encoded:
    assert _worker.encode is not None
    return _worker.encode(group)
