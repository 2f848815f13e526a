"""How tensors are laid out in flat buffers that ranks divide into equal segments. Imports no torch.

Every cut between two segments falls on a row of the tensor that it crosses, by padding in front of
the tensor, so that a rank's share of a matrix is a rectangle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm, prod

MIN_ROWS = 32
"""Rows of the widest tensor that a rank's share of a full bucket has at least, because a share ends
with a row: with many ranks or wide tensors buckets grow beyond their limit."""

MOST_PADDING = 1 / 64
"""Share of a bucket above which it is divided into buckets of equally wide tensors, where that
takes less."""

ALIGNMENT = 32
"""Elements. Tensors begin at multiples of it wherever rows allow, for fast matrix products."""


@dataclass(frozen=True)
class Slot:
    """A tensor's place in a flat buffer.

    Attributes:
        index: of the tensor, in the order given.
        start: first element.
        rows: number of rows.
        width: elements per row.
    """

    index: int
    start: int
    rows: int
    width: int

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + self.rows * self.width


@dataclass(frozen=True)
class FlatLayout:
    """A flat buffer.

    Attributes:
        slots: the tensors' places, in order.
        segment: elements of each rank.
        ranks: number of ranks.
    """

    slots: tuple[Slot, ...]
    segment: int
    ranks: int

    @property
    def size(self) -> int:
        """Elements of the whole buffer."""
        return self.segment * self.ranks

    def owned(self, rank: int) -> Iterator[tuple[Slot, int, int]]:
        """Yield what lies in a rank's segment: slot, first row and number of rows."""
        start, stop = rank * self.segment, (rank + 1) * self.segment
        for slot in self.slots:
            first, last = max(start, slot.start), min(stop, slot.stop)
            if first < last:
                assert (first - slot.start) % slot.width == (last - slot.start) % slot.width == 0
                row = (first - slot.start) // slot.width
                yield slot, row, (last - first) // slot.width


def plan_flat(tensors: Sequence[tuple[int, int]], ranks: int) -> FlatLayout:
    """Lay out tensors in one flat buffer, with as little padding as their rows allow.

    Args:
        tensors: number of rows and width of each; all at least 1.
        ranks: number of equal segments.
    """
    total = sum(rows * width for rows, width in tensors)
    widest = max((width for _, width in tensors), default=0)
    multiple = ALIGNMENT
    segment = _up(max(-(-total // ranks), widest), multiple)
    while True:
        slots, cut_twice = _place(tensors, segment)
        whole_rows = lcm(*(slot.width for slot in cut_twice))
        if segment % whole_rows:
            enough = _up(max(slot.rows * slot.width for slot in cut_twice), multiple)
            multiple_of_rows = lcm(multiple, whole_rows)
            if _up(segment, multiple_of_rows) <= enough:
                multiple = multiple_of_rows
                segment = _up(segment, multiple)
            else:
                segment = enough
            continue
        excess = (slots[-1].stop if slots else 0) - segment * ranks
        if excess <= 0:
            return FlatLayout(slots, segment, ranks)
        segment = _up(segment + -(-excess // ranks), multiple)


def plan_buckets(sizes: Sequence[int], limit: int) -> list[range]:
    """Divide tensors into consecutive buckets of at most `limit`; a larger one is alone in its.

    Args:
        sizes: of the tensors, in bytes.
        limit: of a bucket, in bytes.
    """
    buckets: list[range] = []
    first, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > first and filled + size > limit:
            buckets.append(range(first, index))
            first, filled = index, 0
        filled += size
    if first < len(sizes):
        buckets.append(range(first, len(sizes)))
    return buckets


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return number and width of the rows along which a tensor may be divided over ranks.

    They are those of the last dim; a vector is divided by element.
    """
    return (prod(shape), 1) if len(shape) <= 1 else (prod(shape[:-1]), shape[-1])


def plan_layouts(
    tensors: Sequence[tuple[int, int]], ranks: int, bucket_elements: int
) -> list[tuple[list[int], FlatLayout]]:
    """Divide tensors into buckets and lay out each.

    Args:
        tensors: number of rows and width of each; all at least 1.
        ranks: number of equal segments of every bucket.
        bucket_elements: limit of a bucket, see `MIN_ROWS`.

    Returns:
        For each bucket the positions of its tensors, and its layout.
    """
    widest = max((width for _, width in tensors), default=1)
    limit = max(bucket_elements, ranks * MIN_ROWS * widest)
    found = []
    for bucket in plan_buckets([rows * width for rows, width in tensors], limit):
        whole = (list(bucket), plan_flat([tensors[index] for index in bucket], ranks))
        content = sum(prod(tensors[index]) for index in bucket)
        if whole[1].size > content * (1 + MOST_PADDING):
            parts = _by_width(tensors, bucket, ranks)
            if sum(layout.size for _, layout in parts) < whole[1].size:
                found += parts
                continue
        found.append(whole)
    return found


def _by_width(
    tensors: Sequence[tuple[int, int]], bucket: range, ranks: int
) -> list[tuple[list[int], FlatLayout]]:
    groups: dict[int, list[int]] = {}
    for index in bucket:
        groups.setdefault(tensors[index][1], []).append(index)
    return [
        (members, plan_flat([tensors[index] for index in members], ranks))
        for members in groups.values()
    ]


def _place(tensors: Sequence[tuple[int, int]], segment: int) -> tuple[tuple[Slot, ...], list[Slot]]:
    """Place tensors one after another, so that the first cut in each falls on a row.

    Returns:
        The slots, and those with more than one cut: the others fall on rows only if the width
        divides the segment.
    """
    slots: list[Slot] = []
    cut_twice: list[Slot] = []
    end = 0
    for index, (rows, width) in enumerate(tensors):
        start, size = _up(end, ALIGNMENT), rows * width
        cut = (start // segment + 1) * segment
        if start + size > cut:
            start += (cut - start) % width
        slots.append(Slot(index, start, rows, width))
        end = start + size
        if end > cut + segment:
            cut_twice.append(slots[-1])
    return tuple(slots), cut_twice


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
