"""How a mixture of experts chooses among its experts, as plain data. Imports no torch."""

from dataclasses import dataclass
from math import ceil
from typing import Literal


@dataclass(frozen=True)
class Capacity:
    """How many tokens of one sequence an expert takes at most; without it, as many as choose it.

    Attributes:
        factor: an expert takes `ceil(factor * tokens * experts_per_token / num_experts)` of the
            tokens of a row of the batch, so that 1 is the even share.
        drop: which of those that choose a full expert are turned away: those with the smallest
            "weight", or the last ones by "position". A dropped choice adds nothing to its token.
        pad: whether every expert computes on as many rows as it could take, so that no size
            depends on the data. Changes no result.
    """

    factor: float
    drop: Literal["weight", "position"] = "weight"
    pad: bool = False

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor: must be positive, got {self.factor}; 1 is the even share")

    def of_sequence(self, tokens: int, spec: "RouterSpec") -> int:
        """Return how many of the `tokens` of a row an expert takes at most."""
        share = self.factor * tokens * spec.experts_per_token / spec.num_experts
        return min(ceil(share), tokens)


@dataclass(frozen=True)
class RouterSpec:
    """How each token chooses its experts, and what keeps the choices even.

    Attributes:
        num_experts: experts to choose from.
        experts_per_token: how many a token chooses (top-k).
        scoring: how a score is made of a logit: "softmax" over all experts or "sigmoid".
        softmax_over_chosen: with "softmax": choose by the logits, then take the softmax over the
            chosen ones only (softmax after top-k).
        normalize: whether the weights of the chosen experts are divided by their sum.
        scale: factor of the weights after that.
        num_groups: groups into which neighbouring experts are divided.
        groups_per_token: of how many groups a token may choose experts.
        best_per_group: how many of its best scores are summed to the score of a group.
        has_bias: whether a correction bias is added to the scores for choosing (not for weighing).
        bias_update_rate: by how much an expert's bias moves after a step in which it had more or
            fewer tokens than the mean.
        sequence_loss: coefficient of the balancing loss over each sequence.
        batch_loss: coefficient of the balancing loss over the global batch.
        z_loss: coefficient of the loss that keeps logits small.
        capacity: how many tokens an expert takes; None for all that choose it (dropless).
    """

    num_experts: int
    experts_per_token: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    softmax_over_chosen: bool = False
    normalize: bool = False
    scale: float = 1.0
    num_groups: int = 1
    groups_per_token: int = 1
    best_per_group: int = 2
    has_bias: bool = False
    bias_update_rate: float = 0.0
    sequence_loss: float = 0.0
    batch_loss: float = 0.0
    z_loss: float = 0.0
    capacity: Capacity | None = None

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ValueError("\n".join(problems))

    def problems(self) -> list[str]:
        """Return what does not fit together, a line each."""
        experts, groups = self.num_experts, self.num_groups
        problems: list[str] = []
        if not 1 <= self.experts_per_token <= experts:
            problems.append(
                f"experts_per_token: must be between 1 and num_experts = {experts}, "
                f"got {self.experts_per_token}"
            )
        if groups < 1 or experts % groups:
            problems.append(f"num_groups: does not divide num_experts = {experts}, got {groups}")
            return problems
        if not 1 <= self.groups_per_token <= groups:
            problems.append(
                f"groups_per_token: must be between 1 and num_groups = {groups}, "
                f"got {self.groups_per_token}"
            )
        elif self.groups_per_token * (experts // groups) < self.experts_per_token:
            problems.append(
                f"groups_per_token: {self.groups_per_token} groups of {experts // groups} have "
                f"fewer than experts_per_token = {self.experts_per_token} experts; use more"
            )
        if groups > 1 and not 1 <= self.best_per_group <= experts // groups:
            problems.append(
                f"best_per_group: must be between 1 and the {experts // groups} experts of a "
                f"group, got {self.best_per_group}"
            )
        if self.softmax_over_chosen and self.scoring != "softmax":
            problems.append(
                f'softmax_over_chosen: needs scoring = "softmax", got {self.scoring!r}; '
                "leave it out"
            )
        if self.bias_update_rate and not self.has_bias:
            problems.append(
                f"bias_update_rate: needs has_bias, got {self.bias_update_rate}; set has_bias"
            )
        return problems
