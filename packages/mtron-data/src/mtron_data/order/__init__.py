"""Which tokens make which sample."""
