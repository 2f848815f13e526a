"""The parameters of a model as one tensor-parallel rank holds them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mtron_parallel.cuts import Cut, Rule, ShardRule, cut, rule_of


@dataclass(frozen=True)
class LocalParameter:
    """A parameter of the module, which may be a part of the global one.

    Attributes:
        name: global name.
        global_shape: shape in the whole model.
        rule: how the layout table lets it be cut.
        cut: what this rank holds.
        parameter: the local tensor.
    """

    name: str
    global_shape: tuple[int, ...]
    rule: Rule
    cut: Cut
    parameter: nn.Parameter

    @property
    def dim(self) -> int | None:
        """The dim along which tensor parallelism cuts it, or None."""
        if isinstance(self.rule, ShardRule) and self.rule.axis == "tp":
            return self.rule.dim
        return None

    @property
    def is_vocabulary(self) -> bool:
        """Whether it is cut by tokens of the vocabulary."""
        return isinstance(self.rule, ShardRule) and self.dim == 0 and self.rule.pad

    @property
    def in_sequence_region(self) -> bool:
        """Whether it acts on each token by itself where tokens may be divided over ranks."""
        return not isinstance(self.rule, ShardRule) and self.rule.sequence


def localize(
    model: nn.Module, layout: Mapping[str, Rule], size: int, rank: int
) -> dict[str, LocalParameter]:
    """Replace the parameters of `model` by what a tensor-parallel rank holds, without values.

    Tied parameters stay tied; they appear once, by their first name.

    Args:
        model: on any device.
        layout: the model's table.
        size: tensor-parallel ranks.
        rank: this one.

    Returns:
        The local parameters, on the meta device, in the model's order.

    Raises:
        ValueError: the table has no rule for a parameter, or one that the ranks cannot follow.
    """
    found: dict[str, LocalParameter] = {}
    replaced: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters()):
        rule = rule_of(name, layout)
        shape = tuple(parameter.shape)
        try:
            own = cut(shape, rule, size, rank)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        values = torch.empty(own.shape, dtype=parameter.dtype, device="meta")
        replaced[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
        found[name] = LocalParameter(name, shape, rule, own, replaced[id(parameter)])
    replace_parameters(model, replaced)
    for module in model.modules():
        _set_sizes(module)
    return found


def replace_parameters(model: nn.Module, replaced: Mapping[int, nn.Parameter]) -> None:
    """Put other parameters in the place of those of `model`, by `id`."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = replaced[id(parameter)]


def _set_sizes(module: nn.Module) -> None:
    """Let a module say the sizes that it has."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
