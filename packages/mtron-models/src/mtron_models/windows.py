"""Which layers see a window of the sequence only, by Hugging Face's names. Imports no torch."""

from collections.abc import Sequence

FULL, SLIDING = "full_attention", "sliding_attention"


def window_layers(num_layers: int, first: int) -> tuple[str, ...]:
    """Return the types of layers of which those from index `first` on see a window."""
    return tuple(SLIDING if layer >= first else FULL for layer in range(num_layers))


def layer_types_problems(layer_types: Sequence[str] | None, num_layers: int) -> list[str]:
    """Return what is wrong with `layer_types`, a line each.

    Args:
        layer_types: the type of every layer; None where the model derives them.
        num_layers: how many there must be.
    """
    if layer_types is None:
        return []
    problems = [
        f"layer_types.{index}: must be {FULL!r} or {SLIDING!r}, got {kind!r}"
        for index, kind in enumerate(layer_types)
        if kind not in (FULL, SLIDING)
    ]
    if len(layer_types) != num_layers:
        problems.append(
            f"layer_types: must have one entry for each of num_hidden_layers = {num_layers} "
            f"layers, got {len(layer_types)}"
        )
    return problems
