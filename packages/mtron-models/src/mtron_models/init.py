"""Initial values keyed by name and index: whoever asks for an element gets the same number.

The value of element `[..., row, column]` of a parameter depends on the seed, the parameter's name
and the place of the element in the whole parameter. So a rank draws only the block that it holds,
and any layout starts from the same model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mtron_models.random import Key, fold_in, key_of, normal

_CHUNK = 2**17
"""Values drawn at once: the working set stays in the processor's cache."""


@dataclass(frozen=True)
class Normal:
    """Normally distributed around 0.

    Attributes:
        std: standard deviation.
    """

    std: float


@dataclass(frozen=True)
class Constant:
    """The same value everywhere.

    Attributes:
        value: that value.
    """

    value: float


Rule: TypeAlias = "Normal | Constant"
"""How a parameter is initialized."""

BlockSource: TypeAlias = "Callable[[str, Sequence[int], Sequence[int]], Tensor]"
"""From a parameter's name and a block's offset and shape to the block's values."""


def initial_block(
    name: str,
    rule: Rule,
    seed: int,
    offset: Sequence[int],
    shape: Sequence[int],
    global_shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the initial values of a block of a parameter.

    Normal values are drawn in fp64 and rounded once to `dtype`.

    Args:
        name: the parameter's global name.
        rule: how it is initialized.
        seed: 64-bit seed of the run.
        offset: first index of the block along every dim.
        shape: extent of the block along every dim.
        global_shape: shape of the whole parameter.
        dtype: floating-point type of the values.
        device: where they are computed and returned.

    Raises:
        ValueError: the block does not lie within the parameter.
    """
    inside = len(offset) == len(shape) == len(global_shape) and all(
        0 <= start <= start + size <= whole
        for start, size, whole in zip(offset, shape, global_shape, strict=True)
    )
    if not inside:
        raise ValueError(
            f"{name}: a block at {tuple(offset)} of shape {tuple(shape)} does not lie within "
            f"the parameter's shape {tuple(global_shape)}"
        )
    if isinstance(rule, Constant):
        return torch.full(tuple(shape), rule.value, dtype=dtype, device=device)
    key = fold_in(key_of(f"init/{name}"), seed)
    rows = _row_numbers(offset[:-1], shape[:-1], global_shape[:-1], torch.device(device))
    first, width = (offset[-1], shape[-1]) if shape else (0, 1)
    out = torch.empty((len(rows), width), dtype=dtype, device=device)
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        out[part] = _normal_rows(key, rows[part], first, width).mul_(rule.std)
    return out.view(tuple(shape))


def initial_values(model: nn.Module, seed: int) -> BlockSource:
    """Return a function that draws any block of any parameter of `model`.

    Names, shapes, dtypes and rules are taken now, so the model's parameters may be replaced by
    parts of themselves afterwards.

    Args:
        model: has `init_rules()`; may be on the meta device.
        seed: of the run.

    Returns:
        `draw(name, offset, shape)`: values on the CPU, in the parameter's dtype. It raises
        ValueError for an unknown name and for a block outside the parameter.
    """
    rules = _rules_of(model)
    table = {
        name: (_find(rules, name), tuple(parameter.shape), parameter.dtype)
        for name, parameter in model.named_parameters()
    }

    def draw(name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        if name not in table:
            raise ValueError(f"{name}: is not a parameter of this model")
        rule, global_shape, dtype = table[name]
        return initial_block(name, rule, seed, offset, shape, global_shape, dtype)

    return draw


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Fill every parameter of `model` in place.

    Args:
        model: has `init_rules()` and storage, for example after `model.to_empty(device="cpu")`.
        seed: of the run.

    Raises:
        ValueError: a parameter is still on the meta device.
    """
    draw = initial_values(model, seed)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"{name}: is on the meta device and has no storage; "
                'call model.to_empty(device="cpu") first'
            )
        parameter.copy_(draw(name, (0,) * parameter.dim(), parameter.shape))


def _normal_rows(key: Key, rows: Tensor, first: int, width: int) -> Tensor:
    """Return columns `first` to `first + width` of `rows`, fp64 `[len(rows), width]`.

    The counter is (column // 4, row), and each counter gives four columns.
    """
    begin, end = first // 4, -(-(first + width) // 4)
    group = torch.arange(begin, end, device=rows.device)
    row = rows[:, None]
    values = normal(key, (group, row & 0xFFFFFFFF, row >> 32))
    return values.flatten(1)[:, first - 4 * begin :][:, :width]


def _row_numbers(
    offset: Sequence[int], shape: Sequence[int], global_shape: Sequence[int], device: torch.device
) -> Tensor:
    """Return the numbers of a block's rows in the whole parameter, int64 `[prod(shape)]`."""
    numbers = torch.zeros(1, dtype=torch.int64, device=device)
    for dim, (start, size) in enumerate(zip(offset, shape, strict=True)):
        stride = prod(global_shape[dim + 1 :])
        along = torch.arange(start, start + size, device=device) * stride
        numbers = (numbers[:, None] + along).flatten()
    return numbers


def _rules_of(model: nn.Module) -> dict[str, Rule]:
    init_rules = getattr(model, "init_rules", None)
    if init_rules is None:
        raise ValueError(f"model: {type(model).__name__} has no init_rules() to initialize it by")
    return init_rules()


def _find(rules: dict[str, Rule], name: str) -> Rule:
    for pattern, rule in rules.items():
        if fnmatchcase(name, pattern):
            return rule
    raise ValueError(f"init_rules: no pattern matches the parameter {name}; add one")
