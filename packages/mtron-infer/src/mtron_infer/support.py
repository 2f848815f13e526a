"""Which models the engine can run, and what it refuses by name before it serves anything."""

from typing import Any

from torch import nn


def attentions(model: nn.Module) -> dict[str, Any]:
    """Return the modules with an attention core by name, in the model's order."""
    return {name: m for name, m in model.named_modules() if callable(getattr(m, "core", None))}


def check_generates(model: nn.Module) -> None:
    """Check that a model continues a text token by token, in any company.

    Args:
        model: of mtron_models; may be on the meta device.

    Raises:
        ValueError: a token sees later ones, or takes a place that it must share with the tokens
            of other requests.
    """
    name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for path, attention in attentions(model).items():
        if not attention.spec.causal:
            raise ValueError(
                f"model_type: {name!r} does not continue texts, since tokens see later ones in "
                f"{path}; use a decoder such as 'llama'"
            )
    for path, module in model.named_modules():
        spec: Any = getattr(module, "spec", None)
        if getattr(spec, "capacity", None) is not None:
            raise ValueError(
                f"capacity: experts of {path} turn tokens away when they are full, so requests "
                f"would change each other's texts, got {spec.capacity}; leave it out"
            )


def check_length(model: nn.Module, max_len: int) -> None:
    """Check that what is kept of a token stays right until a sequence has `max_len` tokens.

    Raises:
        ValueError: the model's rotary angles change while a sequence grows.
    """
    config: Any = model.config
    scaling = getattr(config, "rope_scaling", None)
    if scaling is None or scaling.rope_type != "dynamic":
        return
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    if max_len > original:
        raise ValueError(
            f"max_len: beyond {original} tokens the model's rope_scaling of type 'dynamic' turns "
            f"earlier keys anew, which a cache cannot follow, got {max_len}; use at most {original}"
        )
