"""Which modules of a model the names in an adapter's configuration mean."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from mtron_models.adapters.config import ALL_LINEAR, LoraConfig

_HEAD = "head"


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern fits a module's name, or the last parts of it."""
    return any(
        fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns
    )


def find_targets(model: nn.Module, config: LoraConfig) -> dict[str, nn.Linear]:
    """Return the linear layers that get an adapter, by name, in the model's order.

    Args:
        model: without adapters, and with nothing attached.
        config: `target_modules` and `exclude_modules`.

    Raises:
        ValueError: a pattern fits nothing, or what is no plain linear layer; the model has
            adapters already.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if any(name.endswith("lora_A") for name in modules):
        raise ValueError("model: has adapters already; call remove_lora first")
    if config.target_modules == ALL_LINEAR:
        found = [name for name, m in modules.items() if type(m) is nn.Linear and name != _HEAD]
    else:
        leaves = [name for name, module in modules.items() if not any(module.children())]
        stacked = [
            name for name, p in model.named_parameters() if name not in modules and p.dim() > 2
        ]
        candidates = leaves + stacked
        _check_used("target_modules", config.target_modules, candidates)
        found = [name for name in candidates if is_named(name, config.target_modules)]
    _check_used("exclude_modules", config.exclude_modules, found)
    found = [name for name in found if not is_named(name, config.exclude_modules)]
    if not found:
        raise ValueError(
            f"target_modules: no linear module is left, got {config.target_modules!r} and "
            f"exclude_modules = {config.exclude_modules!r}"
        )
    return {name: _linear(model, name, modules.get(name)) for name in found}


def find_saved(
    model: nn.Module, config: LoraConfig, targets: Collection[str]
) -> dict[str, nn.Module]:
    """Return the modules whose own parameters are trained, by name.

    Args:
        model: without adapters.
        config: `modules_to_save`.
        targets: names of the layers that get an adapter.

    Raises:
        ValueError: a pattern fits no module with parameters, one that gets an adapter, or a head
            that is the embedding's matrix.
    """
    modules = {name: m for name, m in model.named_modules() if name and [*m.parameters()]}
    _check_used("modules_to_save", config.modules_to_save, modules)
    found = {name: m for name, m in modules.items() if is_named(name, config.modules_to_save)}
    for name in found:
        both = [target for target in targets if target == name or target.startswith(f"{name}.")]
        if both:
            raise ValueError(
                f"modules_to_save: {both[0]} gets an adapter, got {name}; leave out one of them"
            )
        _check_own(model, "modules_to_save", name)
    return found


def _linear(model: nn.Module, name: str, module: nn.Module | None) -> nn.Linear:
    if module is None:
        raise ValueError(
            f"target_modules: {name} is a stack of experts, not a linear module, and gets no "
            "adapter; name it in exclude_modules"
        )
    if type(module) is not nn.Linear:
        raise ValueError(
            f"target_modules: only plain nn.Linear modules get an adapter, got {name}, which is "
            f"of {type(module).__name__}; exclude it, or name it in modules_to_save to train it"
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"model: something is attached to {name} already; add adapters before")
    _check_own(model, "target_modules", name)
    return module


def _check_own(model: nn.Module, field: str, name: str) -> None:
    """Refuse the head where its matrix is the embedding's."""
    head, embed = (getattr(model, part, None) for part in (_HEAD, "embed"))
    if name == _HEAD and getattr(head, "weight", head) is getattr(embed, "weight", embed):
        raise ValueError(
            f"{field}: head has the matrix of embed (tie_word_embeddings), got head; leave it out"
        )


def _check_used(field: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Refuse a pattern that fits none of the names."""
    for pattern in patterns:
        if any(is_named(name, (pattern,)) for name in names):
            continue
        known = sorted({part for name in names for part in (name, name.rpartition(".")[2])})
        near = get_close_matches(pattern, known, n=1)
        last = sorted({name.rpartition(".")[2] for name in names})
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(last)}"
        raise ValueError(f"{field}: fits no module, got {pattern!r}; {remedy}")
