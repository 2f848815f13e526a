"""Keys and values of running sequences, and the attention core that reads and writes them.

The model knows nothing of this: `attach` replaces `attention.core` of every layer, and the forward
pass carries a `CacheBatch` in its context. Tokens of all sequences lie one behind another in one
row, so linear layers see one large matrix and nothing is padded; only attention takes the
sequences apart.

Shapes: B sequences in the cache, H query heads, G key-value heads, T tokens of this step, L tokens
of one sequence so far, D head dim.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mtron_infer.scheduler import Chunk

Core: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Any], Tensor]"


class KVCache:
    """Room for the keys and values of `num_slots` sequences of up to `max_len` tokens.

    Buffers are made at the first step of each layer, in the shape and type that come, so a layer
    that holds only some of the heads keeps only those.
    """

    def __init__(self, num_slots: int, max_len: int) -> None:
        self.num_slots = num_slots
        self.max_len = max_len
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the buffers `[B, G, max_len, D]` of a layer whose keys and values look so."""
        if index not in self._layers:
            # Never read where it was not written: a system gives such memory only when it is used.
            self._layers[index] = (self._empty(k), self._empty(v))
        return self._layers[index]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_empty(self.num_slots, like.shape[1], self.max_len, like.shape[3])


class CacheBatch:
    """The pieces of sequences that go through the model in one step, in the order of their tokens.

    Attributes:
        positions: position of every token in its sequence, int64 `[T]`.
    """

    def __init__(self, cache: KVCache, chunks: Sequence[Chunk], device: torch.device) -> None:
        self._cache = cache
        self._chunks = tuple(chunks)
        positions = [p for chunk in chunks for p in range(chunk.start, chunk.start + chunk.count)]
        slots = [chunk.slot for chunk in chunks for _ in range(chunk.count)]
        self.positions = torch.tensor(positions, device=device)
        self._slots = torch.tensor(slots, device=device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store new keys and values in place, and attend from each token to its own sequence.

        Args:
            layer: index of the layer.
            q: `[1, H, T, D]`.
            k: `[1, G, T, D]`.
            v: `[1, G, T, D]`.

        Returns:
            `[1, H, T, D]`.
        """
        keys, values = self._cache.layer(layer, k, v)
        keys[self._slots, :, self.positions] = k[0].transpose(0, 1)
        values[self._slots, :, self.positions] = v[0].transpose(0, 1)
        outputs, begin = [], 0
        for chunk in self._chunks:
            row, length = slice(chunk.slot, chunk.slot + 1), chunk.start + chunk.count
            piece = q[:, :, begin : begin + chunk.count]
            outputs.append(_attend(piece, keys[row, :, :length], values[row, :, :length]))
            begin += chunk.count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


class CachedCore:
    """An attention core that uses the cache in the context, if there is one."""

    def __init__(self, inner: Core, layer: int) -> None:
        self.inner = inner
        self.layer = layer

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        """Attend; see `CacheBatch.attend`."""
        if context is None or context.caches is None:
            return self.inner(q, k, v, context)
        return context.caches.attend(self.layer, q, k, v)


def attach(model: nn.Module) -> None:
    """Replace the attention cores of `model`; a second time changes nothing.

    Several engines may share a model: what they keep is in their own contexts.
    """
    attentions: list[Any] = [m for m in model.modules() if callable(getattr(m, "core", None))]
    for index, attention in enumerate(attentions):
        if not isinstance(attention.core, CachedCore):
            attention.core = CachedCore(attention.core, index)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend causally from the last tokens of a sequence.

    Args:
        q: `[1, H, N, D]`, the last N of L tokens.
        k: `[1, G, L, D]`.
        v: `[1, G, L, D]`.

    Returns:
        `[1, H, N, D]`.
    """
    num_new, length = q.shape[2], k.shape[2]
    if num_new == 1:
        # The heads that share keys take the place of the sequence, so nothing is repeated.
        grouped = q.reshape(1, k.shape[1], -1, q.shape[3])
        return scaled_dot_product_attention(grouped, k, v).reshape(1, q.shape[1], 1, -1)
    if num_new == length:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    mask = torch.ones(num_new, length, dtype=torch.bool, device=q.device)
    mask = mask.tril(diagonal=length - num_new)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
