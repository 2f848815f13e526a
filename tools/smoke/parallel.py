"""mtron-parallel alone: a step of a model that no package of mtron made."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mtron_parallel import Mesh, MicroBatch, parallelize


class Bigram(nn.Module):
    """The least that can be trained: each token predicts the next."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)

    def backbone(self, inputs: Tensor, context: Any) -> Tensor:
        """Scores of the next token, which here need no head."""
        return self.table(inputs)

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Loss of each token."""
        return cross_entropy(hidden.flatten(0, 1), labels.flatten(), reduction="none").view_as(
            labels
        )

    def train_loss(self, inputs: Tensor, labels: Tensor, weights: Tensor, context: Any) -> Tensor:
        """The weighted sum that is minimized."""
        return (self.loss(self.backbone(inputs, context), labels) * weights).sum()


@dataclass(frozen=True)
class Whole:
    """Says that a parameter is not cut, as `Replicate` of mtron-models does."""

    sequence: bool = False
    heads: bool = False


def main() -> None:
    """Two micro-batches give the loss and gradient of one batch."""
    torch.manual_seed(0)
    model = Bigram()
    tokens = torch.randint(8, (4, 6))
    reference = cross_entropy(model.table(tokens).flatten(0, 1), tokens.flatten())
    (expected,) = torch.autograd.grad(reference, [model.table.weight])

    parallel = parallelize(model, Mesh(torch.device("cpu")), {"*": Whole()})
    parts = [MicroBatch(part, part, torch.ones_like(part), None) for part in tokens.split(2)]
    stats = parallel.forward_backward(parts)
    (shard,) = parallel.shards()
    assert abs(stats.loss - reference.item()) < 1e-6
    torch.testing.assert_close(shard.tensor.grad, expected)
    torch.testing.assert_close(parallel.grad_norm(), expected.norm().double())


if __name__ == "__main__":
    main()
