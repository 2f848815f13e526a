"""mtron-optim alone: train a model that no package of mtron made, store its state, go on."""

from dataclasses import dataclass

import torch
from torch import nn

from mtron_optim import (
    OptimConfig,
    ScheduleConfig,
    build_optimizer,
    export_state,
    learning_rate_scale,
    load_state,
)


@dataclass(frozen=True)
class Shard:
    """What an optimizer needs to know of a parameter."""

    name: str
    tensor: nn.Parameter


def main() -> None:
    """Muon and AdamW fit a linear map; a copy from the exported state takes the same step."""
    torch.manual_seed(0)
    model, copy = nn.Linear(8, 8), nn.Linear(8, 8)
    x = torch.randn(64, 8)
    y = x.flip(1)
    config = OptimConfig(kind="muon", lr=0.05, weight_decay=0.0)

    def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer([Shard(n, p) for n, p in module.named_parameters()], config)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    optimizer = optimizer_of(model)
    losses = [step(model, optimizer) for _ in range(60)]
    assert losses[-1] < losses[0] / 10, losses

    copy.load_state_dict(model.state_dict())
    other = optimizer_of(copy)
    load_state(other, *export_state(optimizer))
    assert step(model, optimizer) == step(copy, other)
    assert torch.equal(model.weight, copy.weight)
    assert 0 <= learning_rate_scale(ScheduleConfig(), 5) <= 1


if __name__ == "__main__":
    main()
