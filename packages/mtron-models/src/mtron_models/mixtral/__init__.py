"""Mixtral and Qwen3-MoE: decoders whose feed-forward layers are mixtures of experts."""
