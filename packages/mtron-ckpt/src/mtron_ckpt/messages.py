"""What the writers of a checkpoint tell each other."""

from errno import EIO
from typing import Literal

from mtron_ckpt.index import Lengths, Written
from mtron_ckpt.manifest import Document


class ArrayBlocks(Document):
    """The rectangles of an array that a writer holds."""

    name: str
    """`<kind>/<parameter name>`."""
    dtype: str
    """zarr v3 name of the element type."""
    shape: Lengths
    """Global shape."""
    blocks: tuple[tuple[Lengths, Lengths], ...]
    """Offset and shape of each."""


class BlockList(Document):
    """All that a writer holds."""

    count: int
    """The number of writers that it knows of."""
    arrays: tuple[ArrayBlocks, ...]
    """In the order in which they were given."""


class Done(Document):
    """A writer's part is written and durable."""

    plan: str
    """Digest of the division of work that it has followed."""
    written: Written
    """What it has written."""


class Failure(Document):
    """A writer cannot do its part, so that there will be no checkpoint."""

    kind: Literal["ValueError", "OSError"]
    """What the others shall raise."""
    errno: int | None
    """Of an OSError."""
    message: str
    """Names the writer and what went wrong."""

    @classmethod
    def of(cls, error: BaseException, rank: int) -> "Failure":
        """Describe what has happened to a writer."""
        prefix = f"writer {rank}: "
        if isinstance(error, ValueError):
            return cls(kind="ValueError", errno=None, message=f"{prefix}{error}")
        if isinstance(error, OSError):
            text = error.strerror or str(error)
            return cls(kind="OSError", errno=error.errno, message=f"{prefix}{text}")
        text = f"gave up ({type(error).__name__}: {error})"
        return cls(kind="OSError", errno=None, message=f"{prefix}{text}")

    def error(self) -> ValueError | OSError:
        """Return what the other writers shall raise."""
        if self.kind == "ValueError":
            return ValueError(self.message)
        return OSError(self.errno or EIO, self.message)
