"""Which algorithm, rate and decay each parameter gets: a pure function of its name and rank."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from mtron_optim.config import OptimConfig


@dataclass(frozen=True)
class Treatment:
    """How one parameter is updated. Parameters of equal treatment make up one group.

    Attributes:
        algorithm: which optimizer updates it.
        lr: learning rate before the schedule's factor.
        weight_decay: decoupled weight decay.
    """

    algorithm: Literal["adamw", "muon"]
    lr: float
    weight_decay: float


def plan_groups(
    parameters: Iterable[tuple[str, int]], config: OptimConfig
) -> dict[Treatment, list[str]]:
    """Sort parameters into groups.

    Args:
        parameters: global name and number of dims of each.
        config: the rules.

    Returns:
        Names by treatment; groups and names in the order of `parameters`.
    """
    groups: dict[Treatment, list[str]] = {}
    for name, num_dims in parameters:
        groups.setdefault(treatment_of(name, num_dims, config), []).append(name)
    return groups


def treatment_of(name: str, num_dims: int, config: OptimConfig) -> Treatment:
    """Return how the parameter `name` with `num_dims` dims is updated."""
    muon = config.muon
    is_embedding = matches(name, config.embedding_patterns)
    is_head = not is_embedding and matches(name, config.head_patterns)
    decays = num_dims > 1 and not matches(name, config.no_decay_patterns)
    excluded = is_embedding or is_head or matches(name, muon.exclude)
    if config.kind == "muon" and num_dims == 2 and not excluded:
        decay = config.weight_decay if muon.weight_decay is None else muon.weight_decay
        return Treatment("muon", muon.lr or config.lr, decay if decays else 0.0)
    own_lr = config.embedding_lr if is_embedding else config.head_lr if is_head else None
    return Treatment("adamw", own_lr or config.lr, config.weight_decay if decays else 0.0)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether `name` matches one of the `fnmatch` patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
