"""Tensor and sequence parallelism: hooks around the modules whose parameters are cut.

The modules stay what they are (`nn.Linear`, `nn.Embedding`), with smaller parameters. Around them
the ranks communicate: where activations enter products with cut columns, and where products with
cut rows leave partial sums. Reference: Shoeybi et al., arXiv:1909.08053, section 3; for the
sequence region Korthikanti et al., arXiv:2205.05198, section 4.2.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtron_parallel.collectives import Group
from mtron_parallel.differentiable import (
    copy_to,
    divide_sequence,
    gather_sequence,
    join_sequence,
    scatter_sequence,
    sum_over,
)
from mtron_parallel.local import LocalParameter
from mtron_parallel.vocabulary import attach_embedding, attach_head


@dataclass
class Region:
    """What enters and leaves the products of a tensor-parallel group, and how.

    Attributes:
        group: the ranks that share each product.
        split_sequence: whether the tokens between the products are divided over the ranks.
        length: tokens of a row in this forward pass.
        shared: what has entered products that have not been left yet, and what it became.
    """

    group: Group
    split_sequence: bool
    length: int = 0
    shared: tuple[Tensor, Tensor] | None = None

    def begin(self, inputs: Tensor, context: Any) -> Any:
        """Begin a forward pass.

        Args:
            inputs: tokens `[batch, seq]`.
            context: of the whole sequence. If it is a dataclass with the fields `positions` and
                `random`, these are completed for tokens that are divided over the ranks.

        Returns:
            The context to give to the model.
        """
        self.length, self.shared = inputs.shape[1], None
        if self.split_sequence and self.group.size > 1:
            return _divided(context, inputs, self.group)
        return context

    def enter(self, x: Tensor) -> Tensor:
        """Let `x` enter products with cut columns."""
        if self.split_sequence:
            return gather_sequence(x, self.group, self.length)
        return copy_to(x, self.group)

    def enter_shared(self, x: Tensor) -> Tensor:
        """Let `x` enter, once for all products that it enters until the next `leave`."""
        if self.shared is None or self.shared[0] is not x:
            self.shared = (x, self.enter(x))
        return self.shared[1]

    def leave(self, x: Tensor) -> Tensor:
        """Sum the partial results `x` of products with cut rows."""
        self.shared = None
        if self.split_sequence:
            return scatter_sequence(x, self.group)
        return sum_over(x, self.group)


def attach_tensor_parallelism(
    model: nn.Module, parameters: Mapping[str, LocalParameter], region: Region
) -> None:
    """Register the hooks of every module with a cut parameter.

    Layers inside a cut layer, such as those of an adapter, work between its hooks and need none.
    A mixture of experts, which is recognized by its seam `dispatch`, balances and fills its
    experts row by row; it and what is in it sees whole rows also where sequences are divided.

    Args:
        model: with the local parameters in place.
        parameters: all of them by name.
        region: of the model.

    Raises:
        ValueError: a module cannot be cut as the layout table says, or a sequence that is to be
            divided is not because the embedding or the head is whole.
    """
    by_identity = {id(local.parameter): local for local in parameters.values()}
    head, ends, inside = getattr(model, "head", None), set[str](), set[nn.Module]()
    sees_rows, whole_rows = set[nn.Module](), Region(region.group, split_sequence=False)
    divided = region
    for name, module in model.named_modules():
        if module in inside:
            continue
        if divided.split_sequence and hasattr(module, "dispatch"):
            _attach_whole_rows(module, divided)
            sees_rows |= set(module.modules())
        region = whole_rows if module in sees_rows else divided
        _count_heads(module, region)
        local = _cut_weight(name, module, by_identity)
        if local is None:
            continue
        inside |= set(module.modules())
        if isinstance(module, nn.Embedding):
            attach_embedding(name, module, local, region)
            ends.add("embedding")
            continue
        assert isinstance(module, nn.Linear)
        if local.dim == 1:
            _attach_row(module, region)
        elif local.is_vocabulary or module is head:
            attach_head(model, module, local, region)
            ends.add("head")
        else:
            _attach_column(module, region)
    if divided.split_sequence and len(ends) < 2:
        found = f"only the {ends.pop()}" if ends else "neither"
        raise ValueError(
            "parallel.sequence_parallel: the sequence is divided after an embedding and joined "
            f"before a head that are cut over the vocabulary, but of {type(model).__name__} "
            f"{found} is cut, got true; use false, or let the layout cut both"
        )


def _attach_whole_rows(module: nn.Module, region: Region) -> None:
    """Let a module see whole rows, which all ranks compute alike."""

    def join(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return join_sequence(inputs[0], region.group, region.length), *inputs[1:]

    def divide(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, inputs
        return divide_sequence(output, region.group)

    module.register_forward_pre_hook(join)
    module.register_forward_hook(divide)


def _count_heads(module: nn.Module, region: Region) -> None:
    """Tell a core that drops attention weights, by head, which heads of the model this rank has.

    Args:
        module: any; attention is recognized by its `spec` with `dropout`, its `core` and `q_proj`.
        region: of the model.
    """
    spec, core = getattr(module, "spec", None), getattr(module, "core", None)
    if region.group.size == 1 or core is None or not getattr(spec, "dropout", 0.0):
        return
    attention: Any = module
    num_heads = len(attention.q_proj.weight) // attention.head_dim
    attention.core = partial(core, first_head=region.group.rank * num_heads)


def _cut_weight(
    name: str, module: nn.Module, by_identity: Mapping[int, LocalParameter]
) -> LocalParameter | None:
    """Return the weight of a module if it is cut.

    Raises:
        ValueError: it cannot be cut this way.
    """
    own = {
        key: by_identity[id(parameter)]
        for key, parameter in module._parameters.items()
        if parameter is not None
    }
    cut = [local for local in own.values() if local.dim is not None]
    if not cut:
        return None
    weight, bias = own.get("weight"), own.get("bias")
    if not isinstance(module, nn.Linear | nn.Embedding) or weight is None or weight.dim is None:
        raise ValueError(
            f"layout: {cut[0].name} is to be cut, but tensor parallelism cuts the weights of "
            f"nn.Linear and nn.Embedding, got {type(module).__name__} {name}; use Replicate for it"
        )
    if bias is not None:
        _check_bias(weight, bias)
    return weight


def _check_bias(weight: LocalParameter, bias: LocalParameter) -> None:
    """Raise unless the bias of a linear layer goes with its weight."""
    if weight.dim == 0:
        rows, own = (
            [(block.offset[0], block.shape[0]) for block in local.cut.blocks]
            for local in (weight, bias)
        )
        if bias.dim is None or own != rows:
            raise ValueError(
                f"layout: {bias.name} is not cut in the same places as {weight.name}; use the "
                "same rule for both"
            )
    elif bias.dim is not None:
        raise ValueError(
            f"layout: {bias.name} is to be cut, but it is added to the sum over the ranks that "
            f"share {weight.name}; use Replicate for it"
        )
    elif not bias.in_sequence_region:
        raise ValueError(
            f"layout: {bias.name} is added to each token where tokens may be divided over the "
            "ranks, got Replicate(sequence=False); use Replicate(sequence=True) for it"
        )


def _attach_column(module: nn.Linear, region: Region) -> None:
    """Let the input enter, with that of the layers that have the same."""

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (region.enter_shared(arguments[0]), *arguments[1:])

    module.register_forward_pre_hook(enter)


def _attach_row(module: nn.Linear, region: Region) -> None:
    """Sum the outputs, and add the bias once, after the sum."""
    held: list[nn.Parameter | None] = []

    def take_bias(module: nn.Linear, arguments: tuple[Any, ...]) -> None:
        held.append(module._parameters["bias"])
        module._parameters["bias"] = None

    def return_bias(module: nn.Linear, arguments: tuple[Any, ...], output: Tensor) -> None:
        if held:
            module._parameters["bias"] = held.pop()

    def leave(module: nn.Linear, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        total = region.leave(output)
        return total if module.bias is None else total + module.bias

    if module.bias is not None:
        module.register_forward_pre_hook(take_bias)
        module.register_forward_hook(return_bias, always_call=True)
    module.register_forward_hook(leave)


def _divided(context: Any, inputs: Tensor, group: Group) -> Any:
    """Return the context for this rank's tokens: positions of all, because all take part in
    attention, and the places from which their random numbers derive.
    """
    if not is_dataclass(context) or isinstance(context, type):
        return context
    seq, device = inputs.shape[1], inputs.device
    changed: dict[str, Any] = {}
    names = {entry.name for entry in fields(context)}
    if "positions" in names and getattr(context, "positions", 0) is None:
        changed["positions"] = torch.arange(seq, device=device)
    random: Any = getattr(context, "random", None)
    if hasattr(random, "token_index"):
        tokens = random.token_index
        if tokens is None:
            tokens = torch.arange(seq, device=device)
        own = -(-seq // group.size)
        index = torch.arange(own, device=device) + group.rank * own
        tokens = tokens[..., index.clamp(max=seq - 1)]
        changed["random"] = replace(random, token_index=tokens)
    return replace(context, **changed)
