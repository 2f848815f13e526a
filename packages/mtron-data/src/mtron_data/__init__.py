"""Tokenizers, corpus preparation, Megatron-compatible indexed datasets and exactly resumable loaders. No torch needed."""
