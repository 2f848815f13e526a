"""Attention from the newest tokens of one sequence to its earlier ones.

Shapes: H query heads, G key-value heads, N new tokens, L tokens of the sequence so far, D head dim.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Any) -> Tensor:
    """Attend causally from the last tokens of a sequence.

    Args:
        q: `[1, H, N, D]`, the last N of L tokens.
        k: `[1, G, L, D]`.
        v: `[1, G, L, D]`, of any width.
        spec: an `AttentionSpec`: window, scale and softcap.

    Returns:
        `[1, H, N, D]`, as wide as the values.
    """
    num_new, length = q.shape[2], k.shape[2]
    if spec.window is not None and length > num_new + spec.window - 1:
        length = num_new + spec.window - 1  # what no new token sees is left out
        k, v = k[:, :, -length:], v[:, :, -length:]
    if spec.softcap is not None:
        return _attend_by_hand(q, k, v, spec)
    if num_new == 1:
        # The heads that share keys take the place of the sequence, so nothing is repeated.
        grouped = q.reshape(1, k.shape[1], -1, q.shape[3])
        attended = scaled_dot_product_attention(grouped, k, v, scale=spec.scale)
        return attended.reshape(1, q.shape[1], 1, -1)
    is_plain = num_new == length and (spec.window is None or spec.window >= length)
    mask = None if is_plain else _mask(num_new, length, spec.window, q.device)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_plain, scale=spec.scale, enable_gqa=True
    )


def _mask(num_new: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """Return which of `length` tokens the last `num_new` see, bool `[num_new, length]`."""
    seen = torch.ones(num_new, length, dtype=torch.bool, device=device)
    seen = seen.tril(diagonal=length - num_new)
    return seen if window is None else seen.triu(diagonal=length - num_new - window + 1)


def _attend_by_hand(q: Tensor, k: Tensor, v: Tensor, spec: Any) -> Tensor:
    """Attend with scores `s` bounded to `softcap * tanh(s / softcap)`; torch offers no product."""
    num_new, length = q.shape[2], k.shape[2]
    grouped = q.unflatten(1, (k.shape[1], -1))
    scale = q.shape[3] ** -0.5 if spec.scale is None else spec.scale
    scores = (grouped @ k[:, :, None].mT) * scale
    scores = spec.softcap * torch.tanh(scores / spec.softcap)
    if num_new > 1:
        seen = _mask(num_new, length, spec.window, q.device)
        scores = scores.masked_fill(~seen, -torch.inf)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=dtype).to(q.dtype)
    return (weights @ v[:, :, None]).flatten(1, 2)
