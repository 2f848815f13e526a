"""Models that need no checkpoint, and files to score."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest


class BytesTokenizer:
    """One token per byte; token 0 ends a document."""

    eos_id: int | None = 0

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + 1 for byte in text.encode()] for text in texts]


class UniformScorer:
    """Gives every token the same probability."""

    vocab_size = 257

    def __init__(self, max_context: int = 16) -> None:
        self.tokenizer = BytesTokenizer()
        self.max_context = max_context
        self.seen: list[list[int]] = []

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.seen.extend(list(ids) for ids in token_ids)
        return [np.full(len(ids) - 1, -math.log(self.vocab_size)) for ids in token_ids]


class PrefixScorer(UniformScorer):
    """Makes a token's score tell its value and how many tokens were seen before it."""

    @staticmethod
    def value(token: int, num_before: int) -> float:
        return -(token + num_before / 1000)

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.seen.extend(list(ids) for ids in token_ids)
        return [
            np.array([self.value(ids[i], i) for i in range(1, len(ids))], dtype=np.float64)
            for ids in token_ids
        ]


@pytest.fixture
def uniform_scorer() -> UniformScorer:
    return UniformScorer()


@pytest.fixture
def prefix_scorer() -> PrefixScorer:
    return PrefixScorer()


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(*records: object, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write
