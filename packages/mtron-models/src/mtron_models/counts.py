"""How large a model is and how much it computes, from the configuration alone. Imports no torch."""

from math import prod

from mtron_models.config import ModelConfig


def num_parameters(config: ModelConfig) -> int:
    """Return how many numbers the model learns; a tied matrix counts once."""
    return sum(prod(shape) for shape in config.parameter_shapes().values())


def num_active_parameters(config: ModelConfig) -> int:
    """Return how many parameters take part in computing one token.

    All but the experts that the token does not choose, and the layers (`mtp`) that only help to
    train; without these, all.
    """
    chosen = getattr(config, "num_experts_per_tok", 0)
    active = 0
    for name, shape in config.parameter_shapes().items():
        if name.startswith("mtp."):
            continue
        is_stack = ".experts." in name
        active += prod((min(chosen, shape[0]), *shape[1:]) if is_stack else shape)
    return active


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Return the floating-point operations of one training step per token.

    Three times the forward pass: the backward does two products for each one of the forward (for
    the gradient of either factor). Work that is done twice, as with recompute, counts once. This
    is the model's own work, the numerator of the model FLOPs utilization (MFU).

    Args:
        config: the model.
        seq_len: tokens in a sequence, which set the cost of attention.

    Raises:
        ValueError: `seq_len` is not positive.
    """
    if seq_len < 1:
        raise ValueError(f"seq_len: must be at least 1, got {seq_len}")
    return 3 * config.forward_flops_per_token(seq_len)
