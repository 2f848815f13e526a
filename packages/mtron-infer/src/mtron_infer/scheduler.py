"""Decide what runs next: pure functions from the state of the queue to a plan.

A sequence is known here by its id and by two counts: how many tokens it has, and how many of them
have been through the model. A prompt and a token that was just sampled are the same thing: tokens
still to be computed. Every running sequence advances at every step, so sequences join and leave
the batch at any time, and a long prompt goes through in pieces beside the others.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace


class QueueFullError(RuntimeError):
    """No more sequences may wait; try again later."""


@dataclass(frozen=True)
class Limits:
    """What a plan must keep within.

    Attributes:
        max_batch_size: sequences that hold a slot at a time.
        max_batch_tokens: tokens of one step; at least `max_batch_size`.
        max_queue: sequences that may wait.
    """

    max_batch_size: int
    max_batch_tokens: int
    max_queue: int


@dataclass(frozen=True)
class Waiting:
    """A sequence without a slot."""

    id: int
    num_tokens: int


@dataclass(frozen=True)
class Running:
    """A sequence with a slot.

    Attributes:
        id: the sequence.
        slot: its row of the key-value cache.
        num_tokens: tokens known, of the prompt and sampled.
        num_computed: how many of them have been through the model.
    """

    id: int
    slot: int
    num_tokens: int
    num_computed: int = 0


@dataclass(frozen=True)
class QueueState:
    """All sequences, both groups in the order of their arrival."""

    waiting: tuple[Waiting, ...] = ()
    running: tuple[Running, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.waiting or self.running)


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence that go through the model in one step.

    Attributes:
        id: the sequence.
        slot: its row of the key-value cache.
        start: position of the first token.
        count: number of tokens.
        is_last: whether the sequence's next token follows from this chunk.
    """

    id: int
    slot: int
    start: int
    count: int
    is_last: bool


@dataclass(frozen=True)
class Plan:
    """One step: what to run, and the queue after it ran."""

    chunks: tuple[Chunk, ...]
    after: QueueState


def enqueue(state: QueueState, limits: Limits, sequences: Sequence[Waiting]) -> QueueState:
    """Add all of `sequences` at the end of the queue, or none.

    Raises:
        QueueFullError: more would wait than allowed.
    """
    if len(sequences) > room(state, limits):
        raise QueueFullError(
            f"the queue holds {len(state.waiting)} of at most {limits.max_queue} waiting sequences "
            f"and cannot take {len(sequences)} more; try again later"
        )
    return replace(state, waiting=state.waiting + tuple(sequences))


def room(state: QueueState, limits: Limits) -> int:
    """Return how many more sequences may wait."""
    return limits.max_queue - len(state.waiting)


def plan(state: QueueState, limits: Limits) -> Plan:
    """Choose the next step: all running sequences, then those waiting, first come first served.

    A sequence starts when there is a slot and at least one token of the budget left for it.
    """
    budget = limits.max_batch_tokens
    chunks: list[Chunk] = []
    running: list[Running] = []
    for entry in state.running:
        count = min(entry.num_tokens - entry.num_computed, budget)
        if count:
            chunks.append(_chunk(entry, count))
        budget -= count
        running.append(replace(entry, num_computed=entry.num_computed + count))
    slots = _free_slots(state, limits)
    admitted = 0
    for waiting, slot in zip(state.waiting, slots, strict=False):
        if not budget:
            break
        entry = Running(waiting.id, slot, waiting.num_tokens)
        count = min(entry.num_tokens, budget)
        chunks.append(_chunk(entry, count))
        budget -= count
        running.append(replace(entry, num_computed=count))
        admitted += 1
    return Plan(tuple(chunks), QueueState(state.waiting[admitted:], tuple(running)))


def extend(state: QueueState, ids: Collection[int]) -> QueueState:
    """Give each of the running sequences `ids` one more token to compute."""
    running = tuple(
        replace(entry, num_tokens=entry.num_tokens + 1) if entry.id in ids else entry
        for entry in state.running
    )
    return replace(state, running=running)


def remove(state: QueueState, ids: Collection[int]) -> QueueState:
    """Forget `ids`, finished or cancelled, waiting or running; their slots are free again."""
    return QueueState(
        tuple(entry for entry in state.waiting if entry.id not in ids),
        tuple(entry for entry in state.running if entry.id not in ids),
    )


def _chunk(entry: Running, count: int) -> Chunk:
    is_last = entry.num_computed + count == entry.num_tokens
    return Chunk(entry.id, entry.slot, entry.num_computed, count, is_last)


def _free_slots(state: QueueState, limits: Limits) -> list[int]:
    used = {entry.slot for entry in state.running}
    return [slot for slot in range(limits.max_batch_size) if slot not in used]
