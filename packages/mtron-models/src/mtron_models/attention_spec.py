"""Which tokens attend to which, as plain data. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionSpec:
    """What an attention core must do beyond its inputs; a core that cannot refuses it by name.

    Attributes:
        causal: whether a token attends to itself and to earlier tokens only.
        window: how many tokens it attends to, itself included: those less than `window` places
            away (before it, and also after it where attention is not causal); None for all.
        scale: factor of the products of queries and keys; None for 1 / sqrt(head_dim).
        softcap: scores `s` become `softcap * tanh(s / softcap)`; None for no bound.
        dropout: probability of zeroing an attention weight while training; the reference core
            alone can do that.
        values_in_keys: where set, values are the first so many elements of the keys, and a cache
            need not keep them (the latent form of multi-latent attention).
    """

    causal: bool = True
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    dropout: float = 0.0
    values_in_keys: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: must be at least 1, got {self.window}; use None for all")
