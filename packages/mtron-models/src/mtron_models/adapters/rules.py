"""How adapters are initialized and how they may be cut over devices. Imports no torch at run time.

The rules follow from those of the layers beside which they are.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from mtron_models.layout import Layout, Replicate, Shard, heads

if TYPE_CHECKING:
    from mtron_models.init import Rule


def layout_of(base: Callable[[], Layout], names: list[str]) -> Callable[[], Layout]:
    """Return a function that gives the layout table of a model with adapters.

    Args:
        base: gives that of the model without them.
        names: of the linear layers with an adapter.
    """
    return partial(_layout, base, names)


def init_rules_of(
    base: "Callable[[], dict[str, Rule]]", widths: Mapping[str, int]
) -> "Callable[[], dict[str, Rule]]":
    """Return a function that gives the rules of initial values of a model with adapters.

    Args:
        base: gives those of the model without them.
        widths: of the linear layers with an adapter, by name, how many inputs each has.
    """
    return partial(_init_rules, base, widths)


def adapter_rules(rule: Shard | Replicate) -> tuple[Shard | Replicate, Shard | Replicate]:
    """Return the rules of A and of B beside a weight with this rule.

    Of a layer with cut outputs, A is whole and B is cut; of one with cut inputs A is cut and B is
    whole, and takes a part of the sum over A's columns to a part of the sum that the layer leaves
    anyway. Each rank's gradient of the whole one is therefore a part of the sum.

    Args:
        rule: of the weight.

    Raises:
        ValueError: it is no rule of a linear layer.
    """
    if isinstance(rule, Replicate):
        return rule, rule
    if rule.axis != "tp" or rule.dim > 1:
        raise ValueError(f"layout: an adapter is beside the matrix of a linear layer, got {rule}")
    return (heads(), replace(rule)) if rule.dim == 0 else (replace(rule), heads())


def _layout(base: Callable[[], Layout], names: Iterable[str]) -> Layout:
    table = base()
    adapters: Layout = {}
    for name in names:
        rule = next(
            rule for pattern, rule in table.items() if fnmatchcase(f"{name}.weight", pattern)
        )
        first, second = adapter_rules(rule)
        adapters |= {f"{name}.lora_A.weight": first, f"{name}.lora_B.weight": second}
    return adapters | table


def _init_rules(
    base: "Callable[[], dict[str, Rule]]", widths: Mapping[str, int]
) -> "dict[str, Rule]":
    from mtron_models.init import Constant, Normal

    rules: dict[str, Rule] = {}
    for name, width in widths.items():
        # PEFT draws A uniformly, with this standard deviation.
        rules[f"{name}.lora_A.weight"] = Normal((3 * width) ** -0.5)
        rules[f"{name}.lora_B.weight"] = Constant(0.0)
    return rules | base()
