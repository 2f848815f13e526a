"""What a section of a benchmark hands back."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """A number that was to reach, or not to exceed, another.

    Attributes:
        what: the number's meaning.
        value: as measured.
        least: what it must reach, if anything.
        most: what it may not exceed, if anything.
        is_aim: whether it is only hoped for.
    """

    what: str
    value: float
    least: float = float("-inf")
    most: float = float("inf")
    is_aim: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it was reached."""
        return self.least <= self.value <= self.most

    def __str__(self) -> str:
        limits = [("at least", self.least), ("at most", self.most)]
        wanted = ", ".join(f"{word} {limit:g}" for word, limit in limits if abs(limit) < 1e300)
        verdict = "ok" if self.is_met else "not reached" if self.is_aim else "MISSED"
        kind = "aim" if self.is_aim else "required"
        return f"{verdict:11} {self.what}: {self.value:.3g} ({kind}: {wanted})"


@dataclass
class Outcome:
    """The result of a section.

    Attributes:
        rows: measurements as plain data.
        checks: what they are held against.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
