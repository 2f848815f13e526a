import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata, SaveHandle, Writers, layout, staging

Values = dict[str, np.ndarray]


def _values(seed: int) -> Values:
    rng = np.random.default_rng(seed)
    return {
        "param/embed.weight": rng.standard_normal((300, 41), dtype=np.float32),
        "param/layers.0.mlp.up_proj.weight": rng.standard_normal((64, 48)).astype(
            ml_dtypes.bfloat16
        ),
        "param/norm.weight": rng.standard_normal(48).astype(ml_dtypes.bfloat16),
        "exp_avg/embed.weight": rng.standard_normal((300, 41), dtype=np.float32),
        "exp_avg/norm.weight": rng.standard_normal(48, dtype=np.float32),
        "scale/norm.weight": np.array(rng.standard_normal()),
    }


@pytest.fixture
def values() -> Callable[[int], Values]:
    """Values of a small model, different for every seed."""
    return _values


@pytest.fixture
def save() -> Callable[..., Path]:
    """Save whole arrays and wait."""

    def call(root: Path, values: Values, step: int = 1, **metadata) -> Path:
        arrays = {name: LocalArray.whole(value) for name, value in values.items()}
        metadata = {
            "config": {"model": {"hidden_size": 41}},
            "state": {"train": {"step": step}, "loader": {"cursor": [step, 0.1]}},
            "assets": {"tokenizer.json": b'{"version": "1.0"}'},
        } | metadata
        return mtron_ckpt.save(root, arrays, Metadata(step=step, **metadata)).wait()

    return call


@pytest.fixture
def same() -> Callable[[np.ndarray, np.ndarray], bool]:
    """Compare element type, shape and every bit."""

    def call(a: np.ndarray, b: np.ndarray) -> bool:
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()

    return call


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks and windows small, so that little data has many of them."""
    assert staging.BUFFER_BYTES > layout.WINDOW_BYTES  # made from the real sizes
    monkeypatch.setattr(layout, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(layout, "WINDOW_BYTES", 10_000)
    monkeypatch.setattr(layout, "LARGE_BYTES", 1024)


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """Run a function for each rank at once; return its results and exceptions, by rank."""

    def call(function: Callable[[int], Any], count: int = 4, seconds: float = 60) -> list[Any]:
        outcomes: list[Any] = [None] * count

        def run(rank: int) -> None:
            try:
                outcomes[rank] = function(rank)
            except BaseException as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a writer hangs"
        return outcomes

    return call


class Trio:
    """Three writers in threads; each holds a row of a matrix, and all a vector.

    Attributes:
        root: where they save.
        session: what they share.
    """

    count = 3

    def __init__(self, root: Path, together: Callable[..., list[Any]]) -> None:
        self.root = root
        self.session = uuid.uuid4().hex
        self._together = together

    def together(self, function: Callable[[int], Any], count: int = count) -> list[Any]:
        return self._together(function, count)

    def writers(self, rank: int, timeout_seconds: float = 60) -> Writers:
        return Writers(rank, self.count, self.session, timeout_seconds)

    def arrays(self, rank: int, value: float = 0.0) -> dict[str, LocalArray]:
        row = np.full((1, 500), rank + value)
        return {
            "param/w": LocalArray(row, (self.count, 500), (rank, 0)),
            "param/b": LocalArray.whole(np.full(300, value)),
        }

    def begin(
        self,
        rank: int,
        step: int = 1,
        value: float = 0.0,
        timeout_seconds: float = 60,
        arrays: Any = None,
        **options: Any,
    ) -> SaveHandle:
        arrays = self.arrays(rank, value) if arrays is None else arrays
        writers = self.writers(rank, timeout_seconds)
        return mtron_ckpt.save(self.root, arrays, Metadata(step=step), writers=writers, **options)

    def save_broken(
        self, rank: int, who: int, error: BaseException | None = None, **options: Any
    ) -> Path:
        """Take part in a save in which one of them cannot read its values."""
        arrays = None
        if rank == who:
            broken = _Broken(error or OSError(5, "broken source"))
            arrays = {"param/w": LocalArray(broken, (self.count, 500), (rank, 0))}
        return self.begin(rank, arrays=arrays, **options).wait()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())

    def check(self, step: int = 1, value: float = 0.0) -> None:
        """Make sure that a step is there and holds what was saved."""
        checkpoint = mtron_ckpt.open(self.root / f"step-{step:08d}")
        expected = np.repeat(np.arange(self.count) + value, 500).reshape(self.count, 500)
        assert np.array_equal(checkpoint.read("param/w"), expected)
        assert np.array_equal(checkpoint.read("param/b"), np.full(300, value))
        assert mtron_ckpt.verify(self.root).ok


class _Broken:
    """Values that cannot be read."""

    shape, dtype = (1, 500), np.dtype(float)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise self.error


@pytest.fixture
def trio(tmp_path: Path, together: Callable[..., list[Any]]) -> Iterator[Trio]:
    """Three writers; in the end nothing of them may go on."""
    yield Trio(tmp_path, together)
    for thread in threading.enumerate():
        if thread.name.startswith("mtron-ckpt"):
            thread.join(10)
            assert not thread.is_alive()
