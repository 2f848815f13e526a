"""Who writes what, where several processes write a checkpoint. Pure functions.

Every writer works this out by itself, from the same lists and with the same result.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from mtron_ckpt.boxes import Box, Shape, find_overlap, whole_box
from mtron_ckpt.dtypes import stored_dtype
from mtron_ckpt.layout import PiecePlan, plan_piece, stored_bytes
from mtron_ckpt.local_arrays import ArrayForm, HeldArray
from mtron_ckpt.messages import ArrayBlocks, BlockList

Block = tuple[str, Box]
"""Name of an array and a part of it. Equal blocks of several writers are replicas."""


def list_blocks(held: Mapping[str, HeldArray], count: int) -> BlockList:
    """Return what a writer tells the others about the arrays that it holds.

    Args:
        held: the arrays.
        count: the number of writers.
    """
    return BlockList(
        count=count,
        arrays=tuple(
            ArrayBlocks(
                name=array.form.name,
                dtype=array.form.dtype,
                shape=array.form.shape,
                blocks=tuple((box.offset, box.shape) for box, _ in array.blocks),
            )
            for array in held.values()
        ),
    )


@dataclass(frozen=True, eq=False)
class SharedPlan:
    """A division of the work among writers.

    Attributes:
        forms: all arrays, in the order of the first writer that holds each.
        writer_of: which writer writes a block, for all blocks that there are.
        digest: equal on writers that follow the same plan.
    """

    forms: tuple[ArrayForm, ...]
    writer_of: Mapping[Block, int]
    digest: str

    def writes(self, rank: int, block: Block) -> bool:
        """Tell whether a writer that holds a block is the one that writes it."""
        return self.writer_of[block] == rank

    def pieces_of(self, rank: int, held: Mapping[str, HeldArray]) -> tuple[PiecePlan, ...]:
        """Return what a writer writes.

        Args:
            rank: the writer.
            held: the arrays that it holds.
        """
        mine = {
            name: [box for box in _boxes(array) if self.writes(rank, (name, box))]
            for name, array in held.items()
        }
        return tuple(
            plan_piece(held[name].form, box)
            for name, boxes in mine.items()
            for box in self._joined(held[name].form, boxes)
        )

    @cached_property
    def total_bytes(self) -> int:
        """Disk space that the array data of all writers takes together, a little more than less."""
        forms = {form.name: form for form in self.forms}
        return sum(stored_bytes(plan_piece(forms[name], box)) for name, box in self.writer_of)

    @staticmethod
    def _joined(form: ArrayForm, boxes: list[Box]) -> list[Box]:
        """Blocks that are all of an array are stored as one piece, others as they are."""
        whole = whole_box(form.shape)
        if boxes and sum(box.volume for box in boxes) == whole.volume:
            return [whole]
        return boxes


def plan_shared(lists: Sequence[BlockList]) -> SharedPlan:
    """Divide the work evenly among those who can do it.

    Args:
        lists: what each writer holds, by rank.

    Raises:
        ValueError: naming array and writers: they disagree on it, hold parts that overlap without
            being equal, or leave something out.
    """
    _check_counts(lists)
    forms: dict[str, ArrayForm] = {}
    named_by: dict[str, int] = {}
    holders: dict[str, dict[Box, list[int]]] = {}
    for rank, one in enumerate(lists):
        for array in one.arrays:
            form = ArrayForm(array.name, array.dtype, array.shape)
            known = forms.setdefault(array.name, form)
            first = named_by.setdefault(array.name, rank)
            if form != known:
                raise ValueError(_disagreement(known, first, form, rank))
            found = holders.setdefault(array.name, {})
            for box in _unique([Box(*block) for block in array.blocks], array.shape):
                found.setdefault(box, []).append(rank)
    for name, found in holders.items():
        _check_cover(forms[name], found)
    blocks = {(name, box): ranks for name, found in holders.items() for box, ranks in found.items()}
    return SharedPlan(
        forms=tuple(forms.values()),
        writer_of=_assign(blocks, forms, len(lists)),
        digest=_digest(lists),
    )


def _check_counts(lists: Sequence[BlockList]) -> None:
    for rank, one in enumerate(lists):
        if one.count != len(lists):
            raise ValueError(
                f"writers.count: must be the same on every writer, got {lists[0].count} on writer "
                f"0 and {one.count} on writer {rank}"
            )


def _boxes(array: HeldArray) -> list[Box]:
    return _unique([box for box, _ in array.blocks], array.form.shape)


def _unique(boxes: Sequence[Box], shape: Shape) -> list[Box]:
    """Leave out boxes without elements; an array without elements is one box."""
    whole = whole_box(shape)
    return [box for box in boxes if box.volume] if whole.volume else [whole]


def _assign(
    holders: Mapping[Block, Sequence[int]], forms: Mapping[str, ArrayForm], count: int
) -> dict[Block, int]:
    """Give each block to the least loaded of its holders: the large ones first, and before
    them all that only one can write.
    """
    size = {
        (name, box): box.volume * stored_dtype(forms[name].dtype).itemsize for name, box in holders
    }
    load = [0] * count
    writer_of: dict[Block, int] = {}
    for block in sorted(holders, key=lambda block: (len(holders[block]) > 1, -size[block])):
        writer = min(holders[block], key=lambda rank: load[rank])
        load[writer] += size[block]
        writer_of[block] = writer
    return writer_of


def _check_cover(form: ArrayForm, holders: Mapping[Box, Sequence[int]]) -> None:
    """Refuse blocks that are not a division of the array, replicas aside."""
    boxes = list(holders)
    if pair := find_overlap(boxes):
        (a, first), (b, second) = ((boxes[n], holders[boxes[n]][0]) for n in pair)
        raise ValueError(
            f"{form.name}: the blocks of shape {a.shape} at {a.offset} of writer {first} and of "
            f"shape {b.shape} at {b.offset} of writer {second} overlap without being equal, got an "
            f"array of shape {form.shape}; give every element once, or equal blocks as replicas"
        )
    covered, volume = sum(box.volume for box in boxes), whole_box(form.shape).volume
    if covered != volume:
        ranks = sorted(set(chain.from_iterable(holders.values())))
        writers = ", ".join(map(str, ranks))
        raise ValueError(
            f"{form.name}: the blocks of all writers cover {covered} of {volume} elements, got "
            f"blocks from writers {writers or 'without elements'} for an array of shape "
            f"{form.shape}; together the writers must give every element"
        )


def _disagreement(first: ArrayForm, rank: int, second: ArrayForm, other: int) -> str:
    return (
        f"{first.name}: the writers disagree on element type or global shape, got {first.dtype} "
        f"{first.shape} from writer {rank} and {second.dtype} {second.shape} from writer {other}; "
        "give the same everywhere"
    )


def _digest(lists: Sequence[BlockList]) -> str:
    content = json.dumps([one.model_dump() for one in lists], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class PlanCache:
    """The division of work of the last save, for as long as the blocks stay the same."""

    def __init__(self) -> None:
        self._mine: BlockList | None = None
        self._plan: SharedPlan | None = None

    def find(self, mine: BlockList) -> SharedPlan | None:
        """Return the plan that was made when this writer held the same blocks, or None."""
        return self._plan if mine == self._mine else None

    def keep(self, mine: BlockList, plan: SharedPlan) -> None:
        """Remember a plan."""
        self._mine, self._plan = mine, plan

    def clear(self) -> None:
        """Forget the plan: the next save asks all writers again."""
        self._mine = self._plan = None
