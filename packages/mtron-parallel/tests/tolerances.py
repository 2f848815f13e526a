"""Every tolerance of this package's tests; they are only tightened."""

FP64_LOSS = 1e-10
"""Losses in float64, in nats."""

FP64_GRADIENT = 1e-9
"""Norm of the difference of two gradients of a parameter in float64, as a share of the larger of
the gradient's norm and 0.01 of the norm of the model's largest (a true gradient may be 0)."""

FP64_WEIGHTS = 1e-9
"""Weights in float64 after 5 steps of AdamW."""

FP32 = 1e-5
"""Losses and gradients in float32, measured in the same ways; weights after 5 steps of SGD."""

FP64_OP = {"rtol": 1e-13, "atol": 1e-14}
"""One operation against torch's own in float64."""

FP32_OP = {"rtol": 2e-6, "atol": 1e-6}
"""The same in float32."""

BF16_ACCUMULATION = 1e-5
"""Gradients of bfloat16 weights that were summed in float32 in another order, as shares."""
