"""Fast forms of operations, each equal to torch's own up to rounding."""
