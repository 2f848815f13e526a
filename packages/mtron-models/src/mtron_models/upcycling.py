"""A mixture of experts that starts from a dense model.

Reference: Komatsuzaki et al., arXiv:2212.05055; finer experts, He et al., arXiv:2410.07524,
sections 3.1 and 3.2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtron_models.config import ModelConfig
from mtron_models.construction import build
from mtron_models.init import BlockSource, initial_values
from mtron_models.router_spec import RouterSpec

_EXPERTS, _ROUTER = ".experts.", ".router."


def upcycle(dense: Mapping[str, Tensor], config: ModelConfig, seed: int) -> BlockSource:
    """Return initial values of a mixture of experts that computes nearly what a dense model does.

    Every expert is a copy of the dense feed-forward layer. Where experts are narrower by a factor
    `g`, each is one of `g` parts of it: experts 0 to g - 1 are the parts of the first copy, and so
    on, and those of a copy start with the same row of the router, so that they are chosen
    together. What they add up to is then too small, as a token's weights are shared out among
    parts: the projections up and down are multiplied by the square root of what is missing where
    all experts are equally likely. (The reference spreads it over all three projections, which
    for SwiGLU is not exact.) Routers start as in any new model; all else is copied.

    With weights that sum to 1, and `experts_per_token` a multiple of `g`, the mixture computes
    exactly what the dense model computes.

    Args:
        dense: all parameters of the dense model by name, such as `model.state_dict()`.
        config: of the mixture; layers, hidden size and attention are those of the dense model.
        seed: of the routers.

    Returns:
        `draw(name, offset, shape)`, the values of a block of a parameter, as `initial_values`.

    Raises:
        ValueError: `config` has no experts, or a size does not fit the dense model's; every
            problem on a line of its own.
    """
    router_spec = getattr(config, "router_spec", None)
    if router_spec is None:
        raise ValueError(f"model_type: has no experts, got {config.model_type!r}; use 'mixtral'")
    spec: RouterSpec = router_spec()
    shapes = config.parameter_shapes()
    problems = [problem for name in shapes for problem in _problems(name, shapes, dense)]
    if problems:
        raise ValueError("\n".join(problems))
    fresh = initial_values(build(config), seed)

    def draw(name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        if name not in shapes:
            raise ValueError(f"{name}: is not a parameter of this model")
        if _EXPERTS in name:
            return _experts(name, shapes, dense, spec, offset, shape)
        if not name.endswith(f"{_ROUTER}weight"):
            return (
                fresh(name, offset, shape) if _ROUTER in name else dense[name][_at(offset, shape)]
            )
        parts = _parts(name.replace("router.weight", "experts.gate_proj"), shapes, dense)
        rows = [
            fresh(name, (expert // parts, offset[1]), (1, shape[1]))
            for expert in range(offset[0], offset[0] + shape[0])
        ]
        return torch.cat(rows)

    return draw


def _experts(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    dense: Mapping[str, Tensor],
    spec: RouterSpec,
    offset: Sequence[int],
    shape: Sequence[int],
) -> Tensor:
    """Return a block of a stack of experts: a part of the dense projection for each."""
    parts, whole = _parts(name, shapes, dense), dense[_dense_name(name)]
    cut = 1 if name.endswith("down_proj") else 0  # the dim of a dense matrix that parts divide
    width = shapes[name][1 + cut]
    blocks = []
    for expert in range(offset[0], offset[0] + shape[0]):
        start = list(offset[1:])
        start[cut] += expert % parts * width
        blocks.append(whole[_at(start, shape[1:])])
    stack = torch.stack(blocks)
    if name.endswith("gate_proj"):
        return stack
    return stack * (parts / _even_sum(spec)) ** 0.5


def _even_sum(spec: RouterSpec) -> float:
    """Return the sum of a token's weights where all experts are equally likely."""
    if spec.normalize or spec.softmax_over_chosen:
        return spec.scale
    each = 1 / spec.num_experts if spec.scoring == "softmax" else 0.5
    return spec.scale * spec.experts_per_token * each


def _problems(
    name: str, shapes: Mapping[str, tuple[int, ...]], dense: Mapping[str, Tensor]
) -> list[str]:
    """Return why a parameter cannot be made of the dense model's, if so."""
    if _ROUTER in name:
        return []
    source = _dense_name(name) if _EXPERTS in name else name
    if source not in dense:
        return [f"{name}: cannot be made, the dense model has no {source}"]
    shape, found = shapes[name], tuple(dense[source].shape)
    if _EXPERTS not in name:
        return [] if shape == found else [f"{name}: must be {shape}, the dense model has {found}"]
    cut = 1 if name.endswith("down_proj") else 0
    whole, width = found[cut], shape[1 + cut]
    if found[1 - cut] != shape[2 - cut] or whole % width or shape[0] % (whole // width):
        return [
            f"{name}: {shape[0]} experts of width {width} cannot be made of a dense {source} of "
            f"shape {found}; use a width that divides {whole}, and a multiple of the quotient as "
            "the number of experts"
        ]
    return []


def _parts(name: str, shapes: Mapping[str, tuple[int, ...]], dense: Mapping[str, Tensor]) -> int:
    """Return how many experts make one dense layer."""
    cut = 1 if name.endswith("down_proj") else 0
    return dense[_dense_name(name)].shape[cut] // shapes[name][1 + cut]


def _dense_name(name: str) -> str:
    """Return the dense projection's name: `mlp.gate_proj.weight` for `mlp.experts.gate_proj`."""
    return f"{name.replace(_EXPERTS, '.')}.weight"


def _at(offset: Sequence[int], shape: Sequence[int]) -> tuple[Any, ...]:
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
