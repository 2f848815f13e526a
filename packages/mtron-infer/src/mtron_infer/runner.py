"""Run pieces of sequences through the model: token ids in, hidden states and logits out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtron_infer.cache import CacheBatch, KVCache, attach
from mtron_infer.scheduler import Chunk
from mtron_models import Context


class Runner:
    """A model with a key-value cache.

    Args:
        model: a decoder with `backbone` and `logits`; its attention cores get the cache attached.
        num_slots: sequences that the cache holds.
        max_len: tokens of each.
    """

    def __init__(self, model: nn.Module, num_slots: int, max_len: int) -> None:
        attach(model)
        self._model: Any = model
        self._cache = KVCache(num_slots, max_len)
        self._device = next(model.parameters()).device

    def forward(self, chunks: Sequence[Chunk], token_ids: Sequence[int]) -> Tensor:
        """Return the hidden states `[T, hidden]` of the tokens of all chunks, one after another.

        Args:
            chunks: what to run; keys and values of the tokens before each are in the cache.
            token_ids: the T tokens of the chunks in their order.
        """
        batch = CacheBatch(self._cache, chunks, self._device)
        context = Context(positions=batch.positions[None], caches=batch)
        tokens = torch.tensor(token_ids, device=self._device)[None]
        return self._model.backbone(tokens, context)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits `[rows, vocab]` of hidden states `[rows, hidden]`."""
        return self._model.logits(hidden)
