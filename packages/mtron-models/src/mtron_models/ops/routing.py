"""Which experts a token goes to, and what that says about the balance among them.

Shape suffixes: B batch, S sequence, T tokens (B * S), E experts, K experts per token.
"""

from typing import Any

import torch
from torch import Tensor

from mtron_models.router_spec import RouterSpec


def choose_experts(
    logits: Tensor, bias: Tensor | None, spec: RouterSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the experts of every token, and say how much each counts.

    Args:
        logits: `[..., E]`, at least fp32.
        bias: `[E]`, added to the scores for choosing only; None for no bias.
        spec: how.

    Returns:
        The experts, int64 `[..., K]`, the best first; their weights `[..., K]`; and the
        probabilities `[..., E]` that balancing losses look at, which sum to 1.

    Reference: softmax, Shazeer et al., arXiv:1701.06538, section 2.1; sigmoid, bias and groups,
    DeepSeek-AI, arXiv:2412.19437, section 2.1.2.
    """
    if spec.scoring == "softmax":
        scores = probabilities = logits.softmax(dim=-1)
    else:
        scores = logits.sigmoid()
        probabilities = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
    choice = (logits if spec.softmax_over_chosen else scores).detach()
    if bias is not None:
        choice = choice + bias
    if spec.num_groups > 1:
        choice = _in_best_groups(choice, spec)
    experts = choice.topk(spec.experts_per_token, dim=-1).indices
    if spec.softmax_over_chosen:
        weights = logits.gather(-1, experts).softmax(dim=-1)
    else:
        weights = scores.gather(-1, experts)
    if spec.normalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return experts, weights * spec.scale if spec.scale != 1.0 else weights, probabilities


def _in_best_groups(choice: Tensor, spec: RouterSpec) -> Tensor:
    """Return the scores with -inf for experts outside the token's best groups."""
    grouped = choice.unflatten(-1, (spec.num_groups, -1))
    group_scores = grouped.topk(spec.best_per_group, dim=-1).values.sum(dim=-1)
    best = group_scores.topk(spec.groups_per_token, dim=-1).indices
    is_open = torch.zeros_like(group_scores, dtype=torch.bool).scatter(-1, best, True)
    return grouped.masked_fill(~is_open[..., None], -torch.inf).flatten(-2)


def count_experts(experts: Tensor, num_experts: int) -> Tensor:
    """Return how often each expert is chosen in each row, int64 `[B, E]`.

    Args:
        experts: int64 `[B, ...]`, each in [0, E).
        num_experts: E.
    """
    chosen = experts.flatten(1)
    return chosen.new_zeros(len(chosen), num_experts).scatter_add_(1, chosen, chosen * 0 + 1)


def places_in_queue(experts_BSK: Tensor, num_experts: int, weights: Tensor | None) -> Tensor:
    """Return how many choices of its row come before each choice with the same expert.

    Args:
        experts_BSK: int64, each in [0, E).
        num_experts: E.
        weights: `[B, S, K]`; the largest come first, among equals the earlier token. None: the
            earlier token first.

    Returns:
        int64 `[B, S, K]`.
    """
    experts = experts_BSK.flatten(1)
    if weights is None:
        order = experts.argsort(dim=1, stable=True)
    else:
        by_weight = weights.flatten(1).argsort(dim=1, stable=True, descending=True)
        order = by_weight.gather(1, experts.gather(1, by_weight).argsort(dim=1, stable=True))
    counts_BE = count_experts(experts_BSK, num_experts)
    first_BE = counts_BE.cumsum(dim=1) - counts_BE
    place = torch.arange(experts.shape[1], device=experts.device)
    places = place - first_BE.gather(1, experts.gather(1, order))
    return torch.empty_like(experts).scatter_(1, order, places).view_as(experts_BSK)


def balancing_loss(share: Tensor, mean_probability: Tensor) -> Tensor:
    """Return `E * sum of share * mean probability` over the experts, 1 where both are even.

    Args:
        share: `[..., E]`, which part of the choices each expert had; not differentiated. Of the
            choices made, with bias and groups; DeepSeek's equation 18 counts the largest scores.
        mean_probability: `[..., E]`, its probability, averaged over tokens.

    Returns:
        `[...]`.

    Reference: Fedus et al., arXiv:2101.03961, equations 4 to 6; per sequence, arXiv:2412.19437,
    equations 17 to 20.
    """
    return share.shape[-1] * (share * mean_probability).sum(dim=-1)


def attach_loss(hidden: Tensor, value: Tensor, weight: Tensor | float) -> Tensor:
    """Return `hidden` unchanged; its backward also gives `value` the gradient `weight`.

    So the gradient of a loss that arises inside a model joins that of the loss at its end, on
    any pipeline stage.

    Args:
        hidden: any tensor on the way to the loss.
        value: a scalar.
        weight: its factor in the loss.
    """
    return _Attached.apply(hidden, value * weight)


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(hidden: Tensor, loss: Tensor) -> Tensor:
        del loss
        return hidden.view_as(hidden)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return gradients[0], torch.ones_like(loss)
