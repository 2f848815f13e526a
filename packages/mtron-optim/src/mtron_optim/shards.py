"""What the optimizer updates: parameters with global names."""

from dataclasses import dataclass
from typing import Protocol

from torch import nn


class Shard(Protocol):
    """A parameter, or this process's part of one. `ParameterShard` of mtron-parallel is one."""

    @property
    def name(self) -> str:
        """Global name, the same on every process and in every layout."""
        ...

    @property
    def tensor(self) -> nn.Parameter:
        """The local values, with the gradient in `.grad`."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole parameter and not a part of it."""
        ...


@dataclass(frozen=True)
class WholeParameter:
    """A whole parameter of a model that lives in one process."""

    name: str
    tensor: nn.Parameter
    is_whole: bool = True


def shards_of(model: nn.Module) -> list[WholeParameter]:
    """Return the parameters of a model that lives in one process; a tied one once."""
    return [WholeParameter(name, parameter) for name, parameter in model.named_parameters()]
