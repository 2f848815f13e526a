"""How far a layout's numbers may be from those of one process. Only ever tightened."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Largest differences.

    Attributes:
        loss: absolute, of every step's.
        gradients: relative to the larger of the tensor's norm and 0.01 of the largest one.
        weights: absolute, of any element.
    """

    loss: float
    gradients: float
    weights: float


FP64 = Tolerance(loss=1e-10, gradients=1e-9, weights=1e-9)
"""With AdamW, weights after 5 steps."""

FP32 = Tolerance(loss=1e-5, gradients=1e-5, weights=1e-5)
"""With plain gradient descent: AdamW turns the rounding of a gradient near 0 into a full step."""
