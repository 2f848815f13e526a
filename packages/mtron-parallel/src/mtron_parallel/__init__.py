"""Parallel training of plain PyTorch models: device mesh, micro-batches, the loss rule, placements."""
