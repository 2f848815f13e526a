"""Every tolerance of this package's tests; they are only tightened."""

FP64 = {"rtol": 0.0, "atol": 1e-12}
"""Two ways through the same model in float64."""

AGAINST_OTHERS = {"rtol": 0.0, "atol": 1e-6}
"""Log-probabilities of transformers, whose norms and rotary angles are in float32."""

FP32 = {"rtol": 0.0, "atol": 1e-4}
"""Log-probabilities in float32 against float64."""

FREQUENCY_SIGMAS = 5.0
"""Share of a drawn token against its probability, in standard deviations; the seed is fixed."""
