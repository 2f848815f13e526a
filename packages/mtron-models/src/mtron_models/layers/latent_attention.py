"""Multi-head latent attention: what a token keeps for later ones is one short vector.

Shape suffixes: B batch, S sequence, D hidden, N heads (of keys: N or 1), H head width, L latent
width, C width of what a token keeps.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtron_models import ops
from mtron_models.attention_spec import AttentionSpec
from mtron_models.context import Context
from mtron_models.layers.norm import RMSNorm
from mtron_models.layers.rotary import Rotary

LATENT_NORM_EPS = 1e-6
"""Added to the mean square in the norms of latents, as in Hugging Face, whatever others add."""


class LatentHeads(nn.Linear):
    """The projection `kv_b_proj`: from what all heads share to what each of them attends to.

    Its weight `[heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]` holds two matrices of each
    head, one below the other: `K`, which makes a key of the latent, and `V`, which makes a value.

    It also takes the rotary key, which it only hands on. So all that the heads have in common
    enters by one input, and where heads are spread over devices it is there that the gradients of
    all heads are added up.

    Args:
        num_heads: heads.
        kv_lora_rank: width of the latent.
        qk_nope_head_dim: width of a key without its rotary part.
        v_head_dim: width of a value.
    """

    def __init__(
        self, num_heads: int, kv_lora_rank: int, qk_nope_head_dim: int, v_head_dim: int
    ) -> None:
        super().__init__(kv_lora_rank, num_heads * (qk_nope_head_dim + v_head_dim), bias=False)
        self.widths = (qk_nope_head_dim, v_head_dim)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, shared_BSC: Tensor, absorbed: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the keys without their rotary part, the values, and the rotary key.

        Args:
            shared_BSC: latent and rotary key, `[batch, seq, kv_lora_rank + qk_rope_head_dim]`.
            absorbed: whether the latent itself is the key and the value of all heads, because
                queries and results are multiplied by `K` and `V` instead.

        Returns:
            `[batch, seq, N, qk_nope_head_dim]`, `[batch, seq, N, v_head_dim]` with `N` heads, or
            twice `[batch, seq, 1, kv_lora_rank]`; and `[batch, seq, 1, qk_rope_head_dim]`.
        """
        latent_BS1L = shared_BSC[..., None, : self.in_features]
        rope_BS1H = shared_BSC[..., None, self.in_features :]
        if absorbed:
            return latent_BS1L, latent_BS1L, rope_BS1H
        made = F.linear(latent_BS1L, self.weight).view(*shared_BSC.shape[:2], -1, sum(self.widths))
        key_BSNH, value_BSNH = made.split(self.widths, dim=-1)
        return key_BSNH, value_BSNH, rope_BS1H

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return `K [N, qk_nope_head_dim, kv_lora_rank]`, `V [N, v_head_dim, kv_lora_rank]`."""
        key, value = self.weight.view(-1, sum(self.widths), self.in_features).split(
            self.widths, dim=1
        )
        return key, value


class LatentAttention(nn.Module):
    """Self-attention whose keys and values are made of one short vector per token.

    A token keeps a latent `c` of `kv_lora_rank` elements and one rotary key `r` of
    `qk_rope_head_dim` elements for all heads. With a head's matrices `K` and `V` and its query in
    two parts, `q` and the rotary `p`, there are two ways to compute the same:

    - expanded, for training: the head's key of a token is `[K c, r]`, its value `V c`.
    - absorbed, for generation: since `q . K c = (K^T q) . c`, the query becomes `[K^T q, p]`, all
      heads share the key `[c, r]` and the value `c`, and `V` multiplies what they attended to.
      Nothing of a head is computed or kept for earlier tokens.

    `core(q, k, v, context)` is the seam as in `Attention`; queries and keys are wider than values.
    `spec` says what it must do, and in the absorbed form that values are the first `kv_lora_rank`
    elements of the keys, so that a cache keeps `kv_lora_rank + qk_rope_head_dim` elements per
    token. How many heads there are is read from the projections, which may be cut to a part of
    them.

    Args:
        hidden_size: width of the residual stream.
        num_heads: heads.
        q_lora_rank: width of the latent of queries; None where they have none.
        kv_lora_rank: width of the latent of keys and values.
        qk_nope_head_dim: width of a query or key without its rotary part.
        qk_rope_head_dim: width of the rotary part, even.
        v_head_dim: width of a value.
        spec: which tokens attend to which, and how; the scale is that of the expanded form.
        interleaved: whether neighbouring elements form a pair in the rotation.
        bias: whether the projections from and to the residual stream have biases.

    Reference: DeepSeek-V2, arXiv:2405.04434, section 2.1.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        q_lora_rank: int | None,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        spec: AttentionSpec,
        interleaved: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.query_widths = (qk_nope_head_dim, qk_rope_head_dim)
        self.shared_widths = (kv_lora_rank, qk_rope_head_dim)
        self.absorbed = False
        query_size = num_heads * sum(self.query_widths)
        self.has_query_latent = q_lora_rank is not None
        if q_lora_rank is None:
            self.q_proj = nn.Linear(hidden_size, query_size, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden_size, q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(q_lora_rank, query_size, bias=False)
        # "with_mqa": what it makes beside the latent is one key for all heads.
        self.kv_a_proj_with_mqa = nn.Linear(hidden_size, sum(self.shared_widths), bias=bias)
        self.kv_a_layernorm = RMSNorm(kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = LatentHeads(num_heads, kv_lora_rank, qk_nope_head_dim, v_head_dim)
        self.o_proj = nn.Linear(num_heads * v_head_dim, hidden_size, bias=bias)
        self.rotary = Rotary(interleaved)
        # Absorbed queries are wider, and would make another scale of their width.
        self.expanded_spec = replace(spec, scale=spec.scale or sum(self.query_widths) ** -0.5)
        self.core: Callable[[Tensor, Tensor, Tensor, Context], Tensor] = partial(
            ops.attention, spec=self.expanded_spec
        )

    @property
    def spec(self) -> AttentionSpec:
        """What the core must do in the form that is switched on."""
        values_in_keys = self.kv_b_proj.in_features if self.absorbed else None
        return replace(self.expanded_spec, values_in_keys=values_in_keys)

    def forward(self, x_BSD: Tensor, table: Tensor, context: Context) -> Tensor:
        """Let tokens attend to each other.

        Args:
            x_BSD: `[batch, seq, hidden]`.
            table: of `RotaryTable` for `qk_rope_head_dim` elements, for the tokens' positions.
            context: handed to the core.

        Returns:
            `[batch, seq, hidden]`.
        """
        # Of every head; absorbed, keys and values are the latent and have one head.
        query, query_rope = self._queries(x_BSD).split(self.query_widths, dim=-1)
        key, value, key_rope = self.kv_b_proj(self._shared(x_BSD), self.absorbed)
        if self.absorbed:
            key_matrix, _ = self.kv_b_proj.matrices()
            query = torch.einsum("bsnh,nhl->bsnl", query, key_matrix)
        key_rope = self.rotary(key_rope, table).expand(-1, -1, key.shape[2], -1)
        q = torch.cat((query, self.rotary(query_rope, table)), dim=-1)
        k = torch.cat((key, key_rope), dim=-1)
        attended = self.core(q.transpose(1, 2), k.transpose(1, 2), value.transpose(1, 2), context)
        attended = attended.transpose(1, 2)
        if self.absorbed:
            _, value_matrix = self.kv_b_proj.matrices()
            attended = torch.einsum("bsnl,nhl->bsnh", attended, value_matrix)
        return self.o_proj(attended.flatten(-2))

    def _queries(self, x_BSD: Tensor) -> Tensor:
        """Return the queries of all heads, `[batch, seq, heads, nope + rope]`."""
        if self.has_query_latent:
            queries = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        else:
            queries = self.q_proj(x_BSD)
        return queries.unflatten(-1, (-1, sum(self.query_widths)))

    def _shared(self, x_BSD: Tensor) -> Tensor:
        """Return what all heads share: latent and rotary key, the key not turned yet."""
        latent_BSL, key_rope = self.kv_a_proj_with_mqa(x_BSD).split(self.shared_widths, dim=-1)
        return torch.cat((self.kv_a_layernorm(latent_BSL), key_rope), dim=-1)


def absorb(model: nn.Module, absorbed: bool = True) -> None:
    """Switch the form in which every latent attention of a model computes; see `LatentAttention`.

    Do this before attaching cores, which read `spec`.

    Args:
        model: any module that contains some.
        absorbed: True for the form of generation, False for that of training.

    Raises:
        ValueError: the model has no latent attention.
    """
    layers = [module for module in model.modules() if isinstance(module, LatentAttention)]
    if not layers:
        raise ValueError(
            f"model: {type(model).__name__} has no latent attention, so there is nothing to absorb"
        )
    for layer in layers:
        layer.absorbed = absorbed
