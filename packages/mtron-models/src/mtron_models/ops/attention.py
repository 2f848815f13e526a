"""The reference of every attention core."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mtron_models.attention_spec import AttentionSpec
from mtron_models.context import Context
from mtron_models.ops.dropout import keyed_weight_dropout
from mtron_models.ops.numbers import at_least_fp32
from mtron_models.random import Key


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: Context,
    *,
    spec: AttentionSpec,
    bias: Tensor | None = None,
    site: "Key | None" = None,
    first_head: int = 0,
) -> Tensor:
    """Let tokens attend to those that `spec` allows, within their document if there are several.

    This is the default attention core. It attends within the tokens of this call only; a core
    that keeps keys and values between calls is attached from outside.

    Args:
        q: `[B, N, S, H]`.
        k: `[B, K, S, H]`; query head `n` uses key-value head `n // (N / K)`.
        v: `[B, K, S, W]`.
        context: `cu_seqlens` confines attention to documents; `random` is what dropout depends
            on, and where there is none, nothing is dropped.
        spec: which tokens attend to which, and how.
        bias: added to the scores, broadcast to `[B, N, S, S]`.
        site: key of this place in the model, for dropout.
        first_head: which of the layer's query heads the first one of `q` is, for dropout.

    Returns:
        `[B, N, S, W]`.
    """
    mask = attention_mask(spec, context, q.shape[0], q.shape[2], q.device)
    drop = _dropout(spec, context, site, first_head)
    if spec.softcap is not None or drop is not None:
        return _by_hand(q, k, v, mask, spec, bias, drop)
    grouped = q.shape[1] != k.shape[1]
    is_causal = mask is None and spec.causal and bias is None
    if bias is not None:
        mask = _masked_bias(spec, bias, mask)
    width = v.shape[-1]
    v = _as_wide_as_keys(v, k)
    attended = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=spec.scale, enable_gqa=grouped
    )
    return attended[..., :width]


def attention_mask(
    spec: AttentionSpec, context: Context, batch: int, seq: int, device: torch.device
) -> Tensor | None:
    """Return which tokens (last dim) each token may attend to.

    Args:
        spec: causality and window.
        context: `cu_seqlens`, where there are documents.
        batch: rows.
        seq: tokens per row.
        device: where the mask is to be.

    Returns:
        `[batch or 1, 1, seq, seq]`, bool; None where causality alone decides, or nothing does.
    """
    mask = None
    if context.cu_seqlens is not None:
        mask = same_document(context.cu_seqlens, batch, seq)
        mask = mask.tril() if spec.causal else mask
    if spec.window is not None and spec.window < seq:
        place = torch.arange(seq, device=device)
        distance = place[:, None] - place
        near = distance < spec.window
        near = near & (distance >= 0 if spec.causal else distance > -spec.window)
        mask = near[None, None] if mask is None else mask & near
    return mask


def same_document(cu_seqlens: Tensor, batch: int, seq: int) -> Tensor:
    """Return which tokens are of one document, `[batch, 1, seq, seq]`, bool.

    Args:
        cu_seqlens: `[documents + 1]`, ascending, over the flattened batch.
        batch: rows.
        seq: tokens per row. A document that crosses into the next row is two.
    """
    document_BS = document_of(cu_seqlens, batch, seq)
    return (document_BS[:, :, None] == document_BS[:, None, :])[:, None]


def document_of(cu_seqlens: Tensor, batch: int, seq: int) -> Tensor:
    """Return the number of each token's document, `[batch, seq]`."""
    tokens = torch.arange(batch * seq, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    return torch.bucketize(tokens, cu_seqlens[1:], right=True).view(batch, seq)


def _as_wide_as_keys(v: Tensor, k: Tensor) -> Tensor:
    """Return values with zeros up to the width of keys, where torch's fused product needs that.

    On CPU it does. At 1,024 tokens and widths of 64 and 96 a forward pass by it takes a third of
    the time, with the backward a half.
    """
    missing = k.shape[-1] - v.shape[-1]
    if missing <= 0 or v.device.type != "cpu":
        return v
    is_fused = torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled()
    return F.pad(v, (0, missing)) if is_fused else v


def _masked_bias(spec: AttentionSpec, bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None and spec.causal:
        seq = bias.shape[-1]
        mask = torch.ones(seq, seq, dtype=torch.bool, device=bias.device).tril()
    return bias if mask is None else bias.masked_fill(~mask, -torch.inf)


def _dropout(
    spec: AttentionSpec, context: Context, site: "Key | None", first_head: int
) -> Callable[[Tensor], Tensor] | None:
    """Return what drops attention weights `[B, N, S, S]`; None where none are to be dropped."""
    if spec.dropout == 0 or context.random is None:
        return None
    if site is None:
        raise ValueError("site: needed for dropout of attention weights, got None; give its key")
    return partial(
        keyed_weight_dropout,
        probability=spec.dropout,
        site=site,
        random=context.random,
        first_head=first_head,
    )


def _by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    spec: AttentionSpec,
    bias: Tensor | None,
    drop: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Attend step by step, for what torch's product does not offer."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k, v))
    scale = q.shape[-1] ** -0.5 if spec.scale is None else spec.scale
    if spec.softcap is None:
        scores = (q * scale) @ k.mT
    else:
        scores = spec.softcap * torch.tanh((q * (scale / spec.softcap)) @ k.mT)
    if bias is not None:
        scores = scores + bias
    if mask is None and spec.causal:
        seq = scores.shape[-1]
        mask = torch.ones(seq, seq, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        # Added, not filled in: what is added to all heads has nothing to do in the backward.
        scores = scores + torch.where(mask, 0.0, -torch.inf).to(scores.dtype)
    weights = scores.softmax(dim=-1, dtype=at_least_fp32(scores.dtype)).to(q.dtype)
    return (weights if drop is None else drop(weights)) @ v
