"""A mixture of experts in place of a feed-forward layer.

Shape suffixes: B batch, S sequence, D hidden, T tokens (B * S), N tokens of the experts that are
here, R choices sorted by expert, E experts, K experts per token.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtron_models import ops
from mtron_models.context import Context
from mtron_models.init import Constant, Normal, Rule
from mtron_models.layers.experts import Experts
from mtron_models.layers.mlp import GatedMLP
from mtron_models.layers.router import Router, Routing
from mtron_models.router_spec import RouterSpec


class Dispatched(NamedTuple):
    """Tokens and which experts they go to, and the way back.

    Attributes:
        x: tokens of the experts that are here, `[N, D]`.
        token: the token of each choice, those of the first expert first, int64 `[R]`.
        weights: factor of what the expert makes of each choice, `[R]`.
        counts: how many choices each expert has, int64 `[E]`. The first `counts.sum()` of the R
            choices are in use; the others were turned away.
        combine: from the sums over the experts that are here, `[N, D]`, to the sums over all
            experts of the tokens that were given, `[T, D]`.
    """

    x: Tensor
    token: Tensor
    weights: Tensor
    counts: Tensor
    combine: Callable[[Tensor], Tensor]


class MoE(nn.Module):
    """Each token goes to a few of many experts; what they make of it is summed, by weight.

    `dispatch(x_TD, routing)` is the seam at which expert parallelism attaches: it returns the
    tokens of the experts that are here, `Dispatched`. By default all tokens and experts are here.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width of an expert between its projections.
        spec: how tokens choose.
        site: name of this place in the model, in the manner of parameter names.
        shared_size: width of the expert that all tokens go to besides; 0 for none.
        shared_gate: whether each token weighs that expert by the sigmoid of a linear layer.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        spec: RouterSpec,
        *,
        site: str,
        shared_size: int = 0,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        self.router = Router(hidden_size, spec, f"{site}.router")
        self.experts = Experts(spec.num_experts, hidden_size, intermediate_size)
        self.shared_expert = GatedMLP(hidden_size, shared_size) if shared_size else None
        self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False) if shared_gate else None
        self.dispatch: Callable[[Tensor, Routing], Dispatched] = dispatch_locally

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Transform every token by its experts.

        Args:
            x_BSD: `[batch, seq, hidden]`.
            context: weight of the auxiliary losses, and where statistics go.

        Returns:
            `[batch, seq, hidden]`.
        """
        routing, loss = self.router(x_BSD, context)
        x_ND, token_R, weights_R, counts_E, combine = self.dispatch(x_BSD.flatten(0, 1), routing)
        y_ND = self.experts(x_ND, token_R, weights_R, counts_E)
        y_BSD = combine(y_ND).view_as(x_BSD)
        if self.shared_expert is not None:
            y_BSD = y_BSD + self._shared(self.shared_expert, x_BSD)
        if loss is not None:
            assert context.auxiliary_weight is not None
            y_BSD = ops.attach_loss(y_BSD, loss, context.auxiliary_weight)
        return y_BSD

    def _shared(self, expert: nn.Module, x_BSD: Tensor) -> Tensor:
        if self.shared_expert_gate is None:
            return expert(x_BSD)
        return self.shared_expert_gate(x_BSD).sigmoid() * expert(x_BSD)


def dispatch_locally(x_TD: Tensor, routing: Routing) -> Dispatched:
    """Sort the choices of the tokens by their expert.

    Args:
        x_TD: tokens.
        routing: where they go.
    """
    if routing.slots is not None:
        return _dispatch_to_slots(x_TD, routing)
    experts_TK = routing.experts
    choice_R = experts_TK.flatten().argsort(stable=True)
    # Choices that were turned away are counted last, for an expert that does not exist.
    counts_E = ops.count_experts(experts_TK[None], routing.num_experts + 1)[0, :-1]
    weights_R = routing.weights.flatten().gather(0, choice_R)
    return Dispatched(x_TD, choice_R // experts_TK.shape[1], weights_R, counts_E, _as_it_is)


def _dispatch_to_slots(x_TD: Tensor, routing: Routing) -> Dispatched:
    """Give every expert equally many choices, some of which are no token's and weigh nothing."""
    slots_TK, size = routing.slots, routing.slots_per_expert
    assert slots_TK is not None
    total, choices = routing.num_experts * size, slots_TK.numel()
    is_taken_TK = routing.experts < routing.num_experts
    place_TK = torch.where(is_taken_TK, routing.experts * size + slots_TK, total)
    choice_R = torch.full((total + 1,), choices, device=x_TD.device)  # the last: turned away
    choice_R[place_TK.flatten()] = torch.arange(choices, device=x_TD.device)
    choice_R = choice_R[:-1]
    token_R = torch.where(choice_R < choices, choice_R // slots_TK.shape[1], 0)
    weights_R = F.pad(routing.weights.flatten(), (0, 1)).gather(0, choice_R)
    counts_E = torch.full((routing.num_experts,), size, device=x_TD.device)
    return Dispatched(x_TD, token_R, weights_R, counts_E, _as_it_is)


def _as_it_is(y_ND: Tensor) -> Tensor:
    return y_ND


def moe_init_rules(std: float, branch_std: float, spec: RouterSpec) -> dict[str, Rule]:
    """Return the rules of initialization that a model with such layers has before its others.

    Args:
        std: standard deviation of matrices.
        branch_std: that of those which write to the residual stream.
        spec: of the routers.
    """
    return {
        "*.router.bias": Constant(0.0),
        "*.router.load": Constant(1.0 / spec.num_experts),
        "*.experts.down_proj": Normal(branch_std),
        "*.experts.*": Normal(std),
    }
