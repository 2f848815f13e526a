"""A checkpoint as something that scores: the engine of mtron_infer in this process."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtron_infer import Engine, EngineConfig, load


class EngineScorer:
    """The model of a checkpoint, loaded.

    Args:
        path: a root of checkpoints or one step.
        max_batch_tokens: tokens that go through the model at once.

    Raises:
        ValueError: if it is not a checkpoint, or damaged, or its model is unknown.
        OSError: if it cannot be read.
    """

    def __init__(self, path: str, max_batch_tokens: int) -> None:
        loaded = load(path)
        self.tokenizer: Any = loaded.tokenizer
        # Scoring needs no slots for generation, whose cache would only take memory.
        config = EngineConfig(max_batch_size=1, max_batch_tokens=max_batch_tokens)
        self._engine = Engine(loaded.model, loaded.tokenizer, config)
        self.max_context = loaded.config.max_position_embeddings

    def score(self, token_ids: Sequence[Sequence[int]]) -> Sequence[np.ndarray]:
        """Log-probabilities of all tokens but the first, per sequence."""
        return self._engine.score(token_ids)
