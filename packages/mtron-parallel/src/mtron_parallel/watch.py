"""Who keeps a collective waiting: every rank can be asked where it is. Imports no torch."""

import atexit
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mtron_parallel.stacks import place_of_thread

if TYPE_CHECKING:
    from torch.distributed import Store

_PREFIX = "mtron/watch"
_POLL_SECONDS = 0.2
_CHECKS_PER_SECOND = 5000
"""Of all ranks together: a store answers some 50,000, and training needs it too."""
_SHOWN_GROUPS = 8


class PeerLost(ConnectionError):  # noqa: N818 - says what happened
    """A rank of a collective has ended, so it cannot finish."""


class CollectiveTimeout(TimeoutError):  # noqa: N818 - says what happened
    """A collective was not joined by all its ranks in time; the message says where they are."""


@dataclass(frozen=True)
class _Answer:
    """What a rank says about itself."""

    rank: int
    place: str
    """Where its main thread is, such as `loader.py:123 in _read`."""
    collective: str | None
    """In which collective it waits, or was when that failed."""
    seconds: float
    """For how long it has been there."""
    ended: bool
    """Whether its watch has stopped since."""

    @property
    def is_cause(self) -> bool:
        """Whether the others may be waiting for this rank: it is busy with something else."""
        return self.collective is None


class Watch:
    """Answers, for this process, where its main thread is, and asks the other ranks the same.

    Questions and answers go through the job's store over connections of their own, from a daemon
    thread: neither a main thread that waits in a collective nor one that sleeps is in the way. Only
    a main thread that holds Python's lock in foreign code makes the process mute, and that is then
    what the others say about it.

    Use it as a context manager, or `start` and `stop` it. One per process and store.

    Args:
        store: of the job, such as `TCPStore`; is cloned.
        rank: of this process in the job.
        world_size: number of ranks in the job.
    """

    def __init__(self, store: "Store", rank: int, world_size: int) -> None:
        self._rank = rank
        self._world_size = world_size
        self._interval_seconds = max(_POLL_SECONDS, world_size / _CHECKS_PER_SECOND)
        # One connection carries one request at a time: the thread and those who ask have their own.
        self._answering, self._asking = _clone(store), _clone(store)
        self._question = 0
        self._waiting: tuple[str, float] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="mtron-watch", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        # An earlier watch on this store has answered some, and may have said that it ends.
        self._answering.delete_key(_key("last", self._rank))
        while self._answering.check([_key("question", self._question)]):
            self._question += 1
        self._thread.start()
        # A daemon thread that returns from C++ into an interpreter that has ended aborts it.
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the thread, once others that still ask have had their answers."""
        atexit.unregister(self.stop)
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def entered(self, description: str) -> None:
        """Note that this rank now waits in a collective.

        Args:
            description: the same on all its ranks, such as `all_reduce over dp`.
        """
        self._waiting = (description, time.monotonic())

    def left(self) -> None:
        """Note that the collective is done.

        Not to be called after one that has failed: a rank that gives up for that reason would
        otherwise look like one that is busy with something else.
        """
        self._waiting = None

    def explain(
        self,
        waited_seconds: float,
        ranks: Sequence[int] | None = None,
        answer_seconds: float = 1.5,
    ) -> str:
        """Ask the ranks where they are, and say for which of them the others wait.

        Call it between `entered` and `left`, when the wait has failed.

        Args:
            waited_seconds: how long this rank has waited.
            ranks: of the collective, None for all. When they wait in different collectives, the
                cause is elsewhere, and all ranks are asked.
            answer_seconds: how long to wait for answers; returns at once when all are there.

        Returns:
            One line, such as `after 60 s rank 1 is not in a collective: it is at data.py:40 in
            slow_read; ranks 0, 2, 3 wait in all_reduce over dp for 60 s`.
        """
        number, everyone = self._question, range(self._world_size)
        with suppress(RuntimeError):  # the answers then say it
            # Ranks that ask at the same moment ask the same question.
            self._asking.compare_set(_key("question", number), "", str(self._rank))
        answers = self._collect(number, everyone if ranks is None else ranks, answer_seconds)
        if _wait_differently(answers.values()):
            answers = self._collect(number, everyone, answer_seconds)
        text = "the job's store does not answer: the process that holds it has ended"
        if any(answers.values()):
            text = _describe(answers)
        return f"after {waited_seconds:.3g} s {text}"

    def _collect(
        self, number: int, ranks: Iterable[int], seconds: float
    ) -> dict[int, _Answer | None]:
        """Return the ranks' answers to a question, None for those that gave none in time."""
        answers: dict[int, _Answer | None] = dict.fromkeys(ranks)
        deadline = time.monotonic() + max(seconds, 2 * self._interval_seconds)
        # When the store ends, those answers count that have come.
        with suppress(RuntimeError):
            while missing := [rank for rank, answer in answers.items() if answer is None]:
                for rank in missing:
                    keys = _key("answer", number, rank), _key("last", rank)
                    answers[rank] = self._read(keys[0]) or self._read(keys[1])
                if time.monotonic() > deadline:
                    break
                time.sleep(self._interval_seconds / 10)
        return answers

    def _read(self, key: str) -> _Answer | None:
        return _Answer(**json.loads(self._asking.get(key))) if self._asking.check([key]) else None

    def _serve(self) -> None:
        """Answer one question after the other; the thread's whole life."""
        store, end = self._answering, _key("end")
        with suppress(RuntimeError):  # the store has ended, and with it the job
            while not self._stopped.wait(self._interval_seconds):
                self._serve_once()
                if store.check([end]):
                    return
            store.set(_key("last", self._rank), self._answer())
            if self._rank == 0:
                # It usually holds the store. torch reports at length who uses it later.
                store.set(end, "")
            if self._rank == 0 or self._waiting:
                # Those that have failed as well are asking.
                time.sleep(2 * self._interval_seconds)
                self._serve_once()
            if self._rank == 0:
                store.delete_key(end)

    def _serve_once(self) -> None:
        """Answer a question if there is a new one."""
        if self._answering.check([_key("question", self._question)]):
            key = _key("answer", self._question, self._rank)
            self._answering.set(key, self._answer())
            self._question += 1

    def _answer(self) -> str:
        """Return this rank's `_Answer` as JSON."""
        collective, since = self._waiting or (None, time.monotonic())
        place = place_of_thread(threading.main_thread().ident) or "an unknown place"
        seconds, ended = time.monotonic() - since, self._stopped.is_set()
        return json.dumps(asdict(_Answer(self._rank, place, collective, seconds, ended)))


def _key(*parts: object) -> str:
    return "/".join([_PREFIX, *map(str, parts)])


def _clone(store: "Store") -> "Store":
    return store.clone()  # pyright: ignore[reportAttributeAccessIssue]  # torch's stubs lack it


def _wait_differently(answers: Iterable[_Answer | None]) -> bool:
    """Whether all ranks wait, but not for the same: none of them is the cause."""
    waits = [answer and answer.collective for answer in answers]
    return None not in waits and len(set(waits)) > 1


def _describe(answers: Mapping[int, _Answer | None]) -> str:
    """Name the ranks that the others may be waiting for, then the others by what they wait in."""
    groups: dict[tuple[int, str, str], list[int]] = {}
    for rank, answer in sorted(answers.items()):
        groups.setdefault(_state(answer), []).append(rank)
    parts = []
    for (_, one, several), ranks in sorted(groups.items()):
        waits = [
            answer.seconds for rank in ranks if (answer := answers[rank]) and not answer.is_cause
        ]
        text = f"rank {ranks[0]} {one}" if len(ranks) == 1 else f"ranks {_runs(ranks)} {several}"
        parts.append(f"{text} for {max(waits):.3g} s" if waits else text)
    hidden = len(parts) - _SHOWN_GROUPS
    return "; ".join(parts[:_SHOWN_GROUPS] + ([f"and {hidden} more groups"] if hidden > 0 else []))


def _state(answer: _Answer | None) -> tuple[int, str, str]:
    """Return the place of a rank in the message, and its text for one rank and for several."""
    if answer is None:
        text = "not answer and may have died or been stopped"
        return 2, f"does {text}", f"do {text}"
    if not answer.is_cause:
        if answer.ended:
            return 4, f"has failed in {answer.collective}", f"have failed in {answer.collective}"
        return 3, f"waits in {answer.collective}", f"wait in {answer.collective}"
    if answer.ended:
        return 1, "has left the job", "have left the job"
    text = "not in a collective:"
    return 0, f"is {text} it is at {answer.place}", f"are {text} they are at {answer.place}"


def _runs(ranks: Sequence[int]) -> str:
    """Return sorted ranks such as `0, 1, 4-9`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    short = [", ".join(map(str, run)) if len(run) < 3 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(short)
