"""The reference core of cross-attention: tokens of one sequence attend to another sequence."""

import torch
from torch import Tensor

from mtron_models.attention_spec import AttentionSpec
from mtron_models.context import Context
from mtron_models.ops.attention import attention, document_of
from mtron_models.random import Key


def cross_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    context: Context,
    *,
    spec: AttentionSpec,
    site: "Key | None" = None,
    first_head: int = 0,
) -> Tensor:
    """Let tokens attend to those of another sequence, within their document if there are several.

    Args:
        q: `[B, N, S, H]`.
        k: `[B, K, T, H]` of the other sequence, the memory. None stands for the one of an earlier
            call, which this core does not keep.
        v: `[B, K, T, W]`.
        context: tokens of document `n` by `cu_seqlens` attend to document `n` by
            `memory_cu_seqlens`; one that is empty there gives zeros.
        spec: how they attend; not causal, and without a window.
        site: key of this place in the model, for dropout.
        first_head: which of the layer's query heads the first one of `q` is, for dropout.

    Returns:
        `[B, N, S, W]`.

    Raises:
        ValueError: there is no memory, or its documents are not those of the tokens.
    """
    if k is None or v is None:
        raise ValueError(
            "memory: needed at every call, got None; only an attached core that keeps keys and "
            "values in context.caches can do without"
        )
    alone = Context(random=context.random)
    seen = _visible(context, q.shape[0], q.shape[2], k.shape[2])
    if seen is None:
        return attention(q, k, v, alone, spec=spec, site=site, first_head=first_head)
    sees_any = seen.any(dim=-1, keepdim=True)
    # A softmax over nothing is not a number: who sees nothing sees all, and is zeroed afterwards.
    bias = q.new_zeros(seen.shape).masked_fill(sees_any & ~seen, -torch.inf)
    attended = attention(q, k, v, alone, spec=spec, bias=bias, site=site, first_head=first_head)
    return attended.masked_fill(~sees_any, 0)


def _visible(context: Context, batch: int, seq: int, memory_seq: int) -> Tensor | None:
    """Return which tokens of the memory each token may attend to, `[B, 1, S, T]`; None for all."""
    own, other = context.cu_seqlens, context.memory_cu_seqlens
    if own is None and other is None:
        return None
    if own is None or other is None or own.shape != other.shape:
        counts = [0 if each is None else each.shape[0] - 1 for each in (own, other)]
        raise ValueError(
            "context.memory_cu_seqlens: must have as many documents as cu_seqlens, got "
            f"{counts[1]} and {counts[0]}; those without tokens on one side are empty there"
        )
    own_BS = document_of(own, batch, seq)
    other_BT = document_of(other, batch, memory_seq)
    return (own_BS[:, :, None] == other_BT[:, None, :])[:, None]
