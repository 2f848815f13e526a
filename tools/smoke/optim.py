"""mtron-optim alone: train a model that no package of mtron made, store its state, go on."""

import torch
from torch import nn

from mtron_optim import (
    OptimConfig,
    ScheduleConfig,
    build_optimizer,
    export_state,
    learning_rate_scale,
    load_state,
    shards_of,
)


def main() -> None:
    """Muon and AdamW fit a linear map; a copy from the exported state takes the same step."""
    torch.manual_seed(0)
    model, copy = nn.Linear(8, 8), nn.Linear(8, 8)
    x = torch.randn(64, 8)
    y = x.flip(1)
    config = OptimConfig(kind="muon", lr=0.05, weight_decay=0.0)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    optimizer = build_optimizer(shards_of(model), config)
    losses = [step(model, optimizer) for _ in range(60)]
    assert losses[-1] < losses[0] / 10, losses

    copy.load_state_dict(model.state_dict())
    other = build_optimizer(shards_of(copy), config)
    load_state(other, *export_state(optimizer))
    assert step(model, optimizer) == step(copy, other)
    assert torch.equal(model.weight, copy.weight)
    schedule = ScheduleConfig(kind="cosine", warmup_steps=10, total_steps=60)
    assert learning_rate_scale(schedule, 4) < learning_rate_scale(schedule, 10)


if __name__ == "__main__":
    main()
