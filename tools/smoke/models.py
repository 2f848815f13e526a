"""mtron-models alone: build a model from a configuration, fill it, take a loss and its gradient."""

from typing import Any

import torch

from mtron_models import Context, LlamaConfig, build, config_from_dict, initialize, num_parameters


def main() -> None:
    """A model of two layers, from the configuration to gradients."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    assert config_from_dict(config.model_dump()) == config
    model: Any = build(config, device="cpu")
    initialize(model, seed=1)
    assert sum(p.numel() for p in model.parameters()) == num_parameters(config)
    tokens = torch.arange(16).reshape(2, 8)
    weights = torch.full((2, 8), 1 / 16)
    loss = model.train_loss(tokens, tokens, weights, Context())
    loss.backward()
    assert 3 < loss.item() < 6, loss
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


if __name__ == "__main__":
    main()
