"""What can be wrong with a checkpoint, for callers that branch on it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """One damaged place in a checkpoint.

    Attributes:
        file: path of the damaged file.
        start: first byte of the range that fails its checksum.
        stop: one past its last byte.
        problem: what was found there.
        array: name of the array whose values are lost, if it is one.
        rows: `(first, one past the last)` along the array's first dim, if it has one.
    """

    file: str
    start: int
    stop: int
    problem: str
    array: str | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        where = f"{self.file}: bytes {self.start}-{self.stop}"
        if self.array is not None:
            where += f", array {self.array}"
        if self.rows is not None:
            where += f", rows {self.rows[0]}-{self.rows[1]}"
        return f"{where}: {self.problem}"


class CorruptCheckpoint(ValueError):  # noqa: N818 - a state of the files, not an error of the code
    """A committed checkpoint whose bytes are not the ones that were saved.

    Attributes:
        damages: the places found so far; at least one.
    """

    def __init__(self, first: Damage, *others: Damage) -> None:
        self.damages = (first, *others)
        more = f" (and {len(others)} more)" if others else ""
        super().__init__(
            f"{first}{more}; the checkpoint is damaged: use another step or a backup copy"
        )


class IncompleteCheckpoint(ValueError):  # noqa: N818 - a state of the files, not an error
    """A path that holds no committed checkpoint: none was saved there, or a save was cut short."""
