"""Who writes a checkpoint, where several processes do."""

import hashlib
from dataclasses import dataclass

_KEY_DIGITS = 12


@dataclass(frozen=True)
class Writers:
    """Which of the writers of a job's checkpoints a process is.

    The writers find each other in the checkpoint's root, which all of them see; nothing else is
    needed between them. Writer 0 coordinates: it commits.

    Attributes:
        rank: number of this writer.
        count: number of writers.
        session: a string that all writers of this job share and no other job has, nor the same
            job when it is started again.
        timeout_seconds: longest wait for a sign of another writer. One whose process has ended is
            noticed at once where the file system has locks.

    Raises:
        ValueError: naming the field that is out of range.
    """

    rank: int
    count: int
    session: str
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"writers.count: must be at least 1, got {self.count}")
        if not 0 <= self.rank < self.count:
            raise ValueError(
                f"writers.rank: must be from 0 to {self.count - 1} among {self.count} writers, "
                f"got {self.rank}"
            )
        if not self.session:
            raise ValueError(
                "writers.session: must not be empty; draw a random string on one process and "
                "give it to all"
            )
        if not self.timeout_seconds > 0:
            raise ValueError(
                f"writers.timeout_seconds: must be positive, got {self.timeout_seconds}"
            )

    @property
    def others(self) -> range:
        """The ranks of the writers that do not coordinate."""
        return range(1, self.count)

    @property
    def coordinates(self) -> bool:
        """Whether this writer commits what all have written."""
        return self.rank == 0

    @property
    def key(self) -> str:
        """Hexadecimal digits by which the writers of the session find each other."""
        return hashlib.sha256(self.session.encode()).hexdigest()[:_KEY_DIGITS]
