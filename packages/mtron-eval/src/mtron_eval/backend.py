"""A checkpoint as something that scores: the engine of mtron_infer in this process."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mtron_eval.config import EvalConfig
from mtron_infer import Engine, EngineConfig, load


class EngineScorer:
    """The model of a checkpoint, loaded.

    Args:
        path: a root of checkpoints or one step.
        config: with `context` filled in.

    Raises:
        ValueError: if it is not a checkpoint, or damaged, or its model is unknown.
        OSError: if it cannot be read.
    """

    def __init__(self, path: str, config: EvalConfig) -> None:
        assert config.context is not None
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        loaded = load(path, device=config.device, dtype=config.dtype)
        self.tokenizer: Any = loaded.tokenizer
        self.max_context = config.context
        self._model = loaded.model
        # Scoring needs no slots for generation, whose cache would only take memory.
        limits = EngineConfig(max_batch_size=1, max_batch_tokens=config.batch_size * config.context)
        self._engine = Engine(loaded.model, loaded.tokenizer, limits)

    def score(self, token_ids: Sequence[Sequence[int]]) -> Sequence[np.ndarray]:
        """Log-probabilities of all tokens but the first, per sequence."""
        return self._engine.score(token_ids)

    def describe(self) -> dict[str, Any]:
        """How it computes, for the report."""
        parameters = list(self._model.parameters())
        return {
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "num_parameters": sum(parameter.numel() for parameter in parameters),
            "device": str(parameters[0].device),
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "torch_threads": torch.get_num_threads(),
        }
