"""Optimizers, learning-rate schedules, clipping and model acceleration for any PyTorch model."""
