"""Batched generation and an OpenAI-compatible server for what mtron trains."""
