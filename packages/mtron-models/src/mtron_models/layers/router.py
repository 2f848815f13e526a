"""The router of a mixture of experts: which experts each token goes to.

Shape suffixes: B batch, S sequence, D hidden, T tokens (B * S), E experts, K experts per token.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtron_models import ops
from mtron_models.context import Context
from mtron_models.router_spec import RouterSpec


class Routing(NamedTuple):
    """Where the tokens of a forward pass go.

    Attributes:
        experts: int64 `[T, K]`; E, which is no expert, where a choice was turned away.
        weights: `[T, K]`, at least fp32; 0 where a choice was turned away.
        num_experts: E.
        slots: int64 `[T, K]`, which of an expert's rows takes each choice, where every expert
            computes on equally many; None where it computes on as many as choose it.
        slots_per_expert: rows of every expert then.
    """

    experts: Tensor
    weights: Tensor
    num_experts: int
    slots: Tensor | None = None
    slots_per_expert: int = 0


class Router(nn.Module):
    """Chooses experts by a linear layer's logits, which have at least fp32.

    Tokens that only fill a batch are chosen for, counted and balanced as any other: a layer does
    not know which tokens the loss leaves out.

    The parameters `bias` and `load` are not trained by gradients; `update_routers` moves them after
    a step. They stay in at least fp32 whatever the type of the model.

    Args:
        hidden_size: width of a token.
        spec: how to choose, and what keeps the choices even.
        site: name of this place in the model, in the manner of parameter names.
    """

    bias: nn.Parameter | None
    load: nn.Parameter | None

    def __init__(self, hidden_size: int, spec: RouterSpec, site: str) -> None:
        super().__init__()
        self.spec = spec
        self.site = site
        self.weight = nn.Parameter(torch.empty(spec.num_experts, hidden_size))
        self.register_parameter("bias", _statistic(spec) if spec.has_bias else None)
        self.register_parameter("load", _statistic(spec) if spec.batch_loss else None)
        self.op: Callable[[Tensor, Tensor | None, RouterSpec], tuple[Tensor, Tensor, Tensor]]
        self.op = ops.choose_experts

    def forward(self, x_BSD: Tensor, context: Context) -> tuple[Routing, Tensor | None]:
        """Choose experts for every token.

        Args:
            x_BSD: the tokens.
            context: weight of the auxiliary losses, and where statistics go.

        Returns:
            The routing, and the sum of the rows' auxiliary losses, a scalar to be attached; None
            if there are none, as in evaluation.
        """
        dtype = ops.at_least_fp32(x_BSD.dtype)
        logits_BSE = F.linear(x_BSD.to(dtype), self.weight.to(dtype))
        experts_BSK, weights_BSK, probabilities_BSE = self.op(logits_BSE, self.bias, self.spec)
        loss = None
        if self.training:
            loss = self._balance(logits_BSE, experts_BSK, probabilities_BSE, context)
        return self._routing(experts_BSK, weights_BSK), loss

    def _balance(
        self, logits_BSE: Tensor, experts_BSK: Tensor, probabilities_BSE: Tensor, context: Context
    ) -> Tensor | None:
        """Report how often each expert is chosen, and return the rows' auxiliary losses."""
        spec = self.spec
        counts_BE = ops.count_experts(experts_BSK, spec.num_experts)
        counts_BE = context.reduce(f"{self.site}.counts", counts_BE, "sequence")
        context.report(f"{self.site}.counts", counts_BE.sum(dim=0))
        if context.auxiliary_weight is None:
            return None
        choices_B1 = counts_BE.sum(dim=1, keepdim=True).to(logits_BSE.dtype)
        tokens_B1 = choices_B1 / spec.experts_per_token
        mean_probability_BE = probabilities_BSE.sum(dim=1) / tokens_B1
        losses: dict[str, tuple[float, Tensor]] = {}
        if spec.sequence_loss:
            rows = ops.balancing_loss(counts_BE / choices_B1, mean_probability_BE)
            losses["sequence_loss"] = (spec.sequence_loss, rows)
        if spec.batch_loss:
            assert self.load is not None
            rows = ops.balancing_loss(self.load, mean_probability_BE)
            losses["batch_loss"] = (spec.batch_loss, rows)
        if spec.z_loss:
            rows = logits_BSE.logsumexp(dim=-1).square() / tokens_B1
            losses["z_loss"] = (spec.z_loss, rows)
        for name, (_, rows) in losses.items():
            context.report(f"{self.site}.{name}", rows.detach().sum())
        total = [coefficient * rows.sum() for coefficient, rows in losses.values()]
        return torch.stack(total).sum() if total else None

    def _routing(self, experts_BSK: Tensor, weights_BSK: Tensor) -> Routing:
        """Turn away what is beyond the experts' capacity, counted in each row by itself."""
        spec, capacity = self.spec, self.spec.capacity
        experts_TK, weights_TK = experts_BSK.flatten(0, 1), weights_BSK.flatten(0, 1)
        if capacity is None:
            return Routing(experts_TK, weights_TK, spec.num_experts)
        batch, seq, _ = experts_BSK.shape
        size = capacity.of_sequence(seq, spec)
        priority = weights_BSK.detach() if capacity.drop == "weight" else None
        places_BSK = ops.places_in_queue(experts_BSK, spec.num_experts, priority)
        is_taken = (places_BSK < size).flatten(0, 1)
        experts_TK = torch.where(is_taken, experts_TK, spec.num_experts)
        weights_TK = weights_TK * is_taken
        if not capacity.pad:
            return Routing(experts_TK, weights_TK, spec.num_experts)
        row = torch.arange(batch, device=experts_BSK.device)[:, None, None]
        slots_TK = (row * size + places_BSK).flatten(0, 1)
        return Routing(experts_TK, weights_TK, spec.num_experts, slots_TK, batch * size)

    @torch.no_grad()
    def update(self, counts_E: Tensor) -> None:
        """Take note of a step: move the bias, remember which share each expert had.

        Args:
            counts_E: how often each expert was chosen in the global batch.
        """
        counts = counts_E.to(torch.float64)
        if self.bias is not None and self.spec.bias_update_rate:
            direction = (counts.mean() - counts).sign()
            self.bias.add_((self.spec.bias_update_rate * direction).to(self.bias.dtype))
        if self.load is not None:
            self.load.copy_(counts / counts.sum())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep the statistics in at least fp32 where the model is given another type."""
        named = (("bias", self.bias), ("load", self.load))
        before = {name: statistic.detach() for name, statistic in named if statistic is not None}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self.get_parameter(name)
            if new.dtype.itemsize < old.dtype.itemsize:
                self.register_parameter(name, _untrained(old.to(new.device)))
        return self


def update_routers(model: nn.Module, reported: Mapping[str, Tensor]) -> None:
    """Let every router of a model take note of a step, once after the optimizer has.

    An expert with fewer tokens than the mean gets a larger correction bias, one with more a
    smaller one (arXiv:2408.15664); and the balancing loss over the global batch takes the shares
    of this step in the next one.

    Args:
        model: on which the step was done; ranks that hold the same router all call this.
        reported: of `Context.report`, summed over the micro-batches of the step and over all
            ranks that hold other rows of the batch.
    """
    for module in model.modules():
        if isinstance(module, Router) and f"{module.site}.counts" in reported:
            module.update(reported[f"{module.site}.counts"])


def _statistic(spec: RouterSpec) -> nn.Parameter:
    return _untrained(torch.empty(spec.num_experts, dtype=torch.float32))


def _untrained(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
