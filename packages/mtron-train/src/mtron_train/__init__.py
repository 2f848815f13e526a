"""The training run: one validated configuration, the loop, metrics, exact resume."""
