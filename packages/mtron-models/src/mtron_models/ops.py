"""The reference of every op: the plainest form that is also fast without a compiler.

A module that calls one holds it as `self.op` (an attention core as `self.core`); fused kernels
with the same signature are attached there from outside, and are tested against these. "At least
fp32" means: 16-bit inputs are computed in fp32 and rounded once at the end, and fp64 stays fp64.

Shape suffixes: B batch, S sequence, D hidden, N query heads, K key-value heads, H head width,
V vocabulary, F feed-forward width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtron_models.context import Context, RandomKey
from mtron_models.random import Key, fold_in, words


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which to compute: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each vector to a root mean square of 1, then by a weight per element.

    Args:
        x: `[..., D]`; computed in at least fp32.
        weight: `[D]`.
        eps: added to the mean square.

    Returns:
        `[..., D]` in the dtype of `x`.

    Reference: Zhang and Sennrich, arXiv:1910.07467, equation 4.
    """
    dtype = at_least_fp32(x.dtype)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    mean_square = norm.square() / x.shape[-1]
    return (x * torch.rsqrt(mean_square + eps)).to(x.dtype) * weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up`, all `[..., F]`. Reference: Shazeer, arXiv:2002.05202."""
    return F.silu(gate) * up


def rotary_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Tensor:
    """Return `cos`, `-sin` and `sin` of the angles by which `rotary` turns.

    Element `i` of the first half of a head and element `i` of the second form a pair, which turns
    by the angle `position * theta ** (-2 i / head_dim)`.

    Args:
        positions: `[S]` or `[B, S]`, integers.
        head_dim: width of a head, even.
        theta: base of the frequencies.
        dtype: of the table; fp32 or fp64.

    Returns:
        `[S, 1, 3, H/2]` or `[B, S, 1, 3, H/2]`. One tensor, so that a compiler computes it once
        and not again in every layer.

    Reference: Su et al., arXiv:2104.09864, section 3.2.2, with halves instead of neighbours.
    """
    even = torch.arange(0, head_dim, 2, dtype=dtype, device=positions.device)
    frequencies = 1.0 / theta ** (even / head_dim)
    angles = positions.to(dtype)[..., None, None] * frequencies
    sin = angles.sin()
    return torch.stack((angles.cos(), -sin, sin), dim=-2)


def rotary(x_BSNH: Tensor, table: Tensor) -> Tensor:
    """Turn every head by the angles of its token's position; computed in at least fp32.

    Args:
        x_BSNH: queries or keys.
        table: of `rotary_table`, for the same tokens.

    Returns:
        `[B, S, N, H]` in the dtype of `x_BSNH`.
    """
    cos, signed_sin = table[..., :1, :], table[..., 1:, :]
    halves = x_BSNH.to(table.dtype).unflatten(-1, (2, -1))
    turned = torch.addcmul(halves * cos, halves.flip(-2), signed_sin)
    return turned.flatten(-2).to(x_BSNH.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
    """Let every token attend to itself and to those before it, within its document if given.

    This is the default attention core. It attends within the tokens of this call only; a core
    that keeps keys and values between calls is attached from outside.

    Args:
        q: `[B, N, S, H]`.
        k: `[B, K, S, H]`; query head `n` uses key-value head `n // (N / K)`.
        v: `[B, K, S, H]`.
        context: `cu_seqlens` confines attention to documents.

    Returns:
        `[B, N, S, H]`.
    """
    grouped = q.shape[1] != k.shape[1]
    if context.cu_seqlens is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    mask = document_mask(context.cu_seqlens, q.shape[0], q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def document_mask(cu_seqlens: Tensor, batch: int, seq: int) -> Tensor:
    """Return which tokens (last dim) each token may attend to: its own document, not later.

    Args:
        cu_seqlens: `[documents + 1]`, ascending, over the flattened batch.
        batch: rows.
        seq: tokens per row. A document that crosses into the next row is two.

    Returns:
        `[batch, 1, seq, seq]`, bool.
    """
    tokens = torch.arange(batch * seq, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    document_BS = torch.bucketize(tokens, cu_seqlens[1:], right=True).view(batch, seq)
    same = document_BS[:, :, None] == document_BS[:, None, :]
    return same.tril()[:, None]


def keyed_dropout(x_BSD: Tensor, probability: float, site: Key, random: RandomKey) -> Tensor:
    """Zero elements at random and scale up the others; the same ones however the batch is split.

    Whether an element is zeroed depends only on the seed, the step, its sample, the site, its
    token's place in the sample and its place in the hidden vector.

    Args:
        x_BSD: any floating-point tensor.
        probability: of being zeroed, in [0, 1), kept to a multiple of 2**-32.
        site: key of the place in the model.
        random: seed, step, sample ids, and where the tokens stand.
    """
    _, seq, hidden = x_BSD.shape
    token = random.token_index
    if token is None:
        token = torch.arange(seq, device=x_BSD.device)
    key = fold_in(fold_in(site, random.seed), random.step, random.sample_ids[:, None, None])
    group = torch.arange((hidden + 3) // 4, device=x_BSD.device)  # a counter gives four words
    drawn = words(key, (group, token[..., None])).flatten(-2)[..., :hidden]
    keep = drawn >= round(probability * 2**32)
    return x_BSD * keep.to(x_BSD.dtype) * (1.0 / (1.0 - probability))
