import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata, layout, staging

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
