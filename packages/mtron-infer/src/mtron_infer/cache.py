"""Keys and values of running sequences, and the attention core that reads and writes them.

The model knows nothing of this: `attach` replaces `attention.core` of every layer, and the forward
pass carries a `CacheBatch` in its context. Tokens of all sequences lie one behind another in one
row, so linear layers see one large matrix and nothing is padded; only attention takes the
sequences apart.

Shapes: B sequences in the cache, T tokens of this step; H, G and D as in `attend`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mtron_infer.attend import attend
from mtron_infer.scheduler import Chunk
from mtron_infer.support import attentions
from mtron_models import absorb

Core: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Any], Tensor]"


class KVCache:
    """Room for the keys and values of `num_slots` sequences of up to `max_len` tokens.

    Buffers are made at the first step of each layer, in the shape and type that come, so a layer
    that holds only some of the heads keeps only those.
    """

    def __init__(self, num_slots: int, max_len: int) -> None:
        self.num_slots = num_slots
        self.max_len = max_len
        self._buffers: dict[tuple[int, str], Tensor] = {}

    @property
    def numbers_per_token(self) -> int:
        """How many numbers are kept of a token, in all layers that have run so far."""
        return sum(buffer.shape[1] * buffer.shape[3] for buffer in self._buffers.values())

    def buffer(self, layer: int, kind: str, like: Tensor) -> Tensor:
        """Return the buffer `[B, G, max_len, D]` of a layer's keys or values.

        Args:
            layer: index of the layer.
            kind: "keys" or "values".
            like: what comes of them, `[1, G, T, D]`.
        """
        if (layer, kind) not in self._buffers:
            # Never read where it was not written: a system gives such memory only when it is used.
            shape = (self.num_slots, like.shape[1], self.max_len, like.shape[3])
            self._buffers[layer, kind] = like.new_empty(shape)
        return self._buffers[layer, kind]


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

    def attend(self, layer: int, spec: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store new keys and values in place, and attend from each token to its own sequence.

        Args:
            layer: index of the layer.
            spec: the layer's `AttentionSpec`.
            q: `[1, H, T, D]`.
            k: `[1, G, T, D]`.
            v: `[1, G, T, D]`, of any width.

        Returns:
            `[1, H, T, D]`, as wide as the values.
        """
        keys = self._stored(layer, "keys", k)
        if spec.values_in_keys is None:
            values = self._stored(layer, "values", v)
        else:
            values = keys[..., : spec.values_in_keys]
        outputs, begin = [], 0
        for chunk in self._chunks:
            row, length = slice(chunk.slot, chunk.slot + 1), chunk.start + chunk.count
            piece = q[:, :, begin : begin + chunk.count]
            outputs.append(attend(piece, keys[row, :, :length], values[row, :, :length], spec))
            begin += chunk.count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _stored(self, layer: int, kind: str, new: Tensor) -> Tensor:
        """Write what is new into a buffer and return the buffer."""
        buffer = self._cache.buffer(layer, kind, new)
        buffer[self._slots, :, self.positions] = new[0].transpose(0, 1)
        return buffer


class CachedCore:
    """An attention core that uses the cache in the context, if there is one.

    Args:
        inner: the core where there is none.
        layer: index of the layer.
        spec: the layer's `AttentionSpec`.
    """

    def __init__(self, inner: Core, layer: int, spec: Any) -> None:
        self.inner = inner
        self.layer = layer
        self.spec = spec

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        """Attend; see `CacheBatch.attend`."""
        if context is None or context.caches is None:
            return self.inner(q, k, v, context)
        return context.caches.attend(self.layer, self.spec, q, k, v)


def attach(model: nn.Module) -> None:
    """Replace the attention cores of `model`; a second time changes nothing.

    Several engines may share a model: what they keep is in their own contexts. Latent attention is
    switched to its absorbed form, in which the cache keeps one short vector per token.
    """
    found = attentions(model)
    if any(hasattr(attention, "absorbed") for attention in found.values()):
        absorb(model)
    for index, attention in enumerate(found.values()):
        if not isinstance(attention.core, CachedCore):
            attention.core = CachedCore(attention.core, index, attention.spec)
