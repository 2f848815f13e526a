"""A plain model attached to a mesh: forward and backward over micro-batches, its shards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import nn

from mtron_parallel.batch import LossStats, MicroBatch
from mtron_parallel.mesh import Mesh
from mtron_parallel.placement import Block, Placement


class TrainableModel(Protocol):
    """What `parallelize` needs of a model, next to its being an `nn.Module`."""

    def train_loss(
        self, inputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, context: Any
    ) -> torch.Tensor:
        """Return the sum over `[batch, seq]` of the per-token loss times its weight."""
        ...

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the per-token loss `[batch, seq]` of hidden states `[batch, seq, hidden]`."""
        ...

    def backbone(self, inputs: torch.Tensor, context: Any) -> torch.Tensor:
        """Return the hidden states `[batch, seq, hidden]` that the head takes."""
        ...


@dataclass(frozen=True)
class ParameterShard:
    """The part of one parameter that this rank's optimizer updates.

    Attributes:
        name: the parameter's global name, the same in every layout.
        tensor: the local values, with the gradient in `.grad` after a backward.
        placement: where they lie in the global parameter.
    """

    name: str
    tensor: nn.Parameter
    placement: Placement

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole parameter (Muon and SOAP need whole matrices)."""
        return self.placement.is_whole


def parallelize(model: nn.Module, mesh: Mesh, layout: Mapping[str, Any]) -> "ParallelModel":
    """Attach `model` to `mesh`.

    Args:
        model: a plain module with `train_loss`, `backbone` and `loss`; on the meta device or not.
        mesh: the processes and this one's device.
        layout: the model's layout table, from patterns of parameter names to how they may be cut.

    Returns:
        The model, ready for `fill` and then for `forward_backward`.

    Raises:
        ValueError: the layout table leaves a parameter without a rule, so that it could not be
            placed on a larger mesh.
    """
    for name, _ in model.named_parameters():
        if not any(fnmatchcase(name, pattern) for pattern in layout):
            raise ValueError(
                f"layout: no pattern matches the parameter {name}; add one to the model's table"
            )
    return ParallelModel(model, mesh)


class ParallelModel:
    """A model on a mesh. Build it with `parallelize`."""

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        self.module = model
        self.mesh = mesh
        self._placements = {name: Placement.whole(p) for name, p in model.named_parameters()}

    def placements(self) -> dict[str, Placement]:
        """Return for every parameter, by global name, the part that this rank holds."""
        return dict(self._placements)

    def shards(self) -> list[ParameterShard]:
        """Return the tensors that the optimizer updates, in the model's order."""
        return [
            ParameterShard(name, parameter, self._placements[name])
            for name, parameter in self.module.named_parameters()
        ]

    @torch.no_grad()
    def fill(self, values: Callable[[str, Block], torch.Tensor]) -> None:
        """Give every parameter storage on the mesh's device and its values.

        Initialization and loading are the same operation: both say what block of which
        parameter is wanted. A tied parameter is asked for once, by its first name.

        Args:
            values: returns the values of a block of a named parameter, in the block's shape.
        """
        _materialize(self.module, self.mesh.device)
        for shard in self.shards():
            for block in shard.placement.blocks:
                shard.tensor.copy_(values(shard.name, block))

    def forward_backward(self, micro_batches: Sequence[MicroBatch]) -> LossStats:
        """Run forward and backward of one global batch; gradients are in the shards afterwards.

        The loss is the sum of per-token losses over the valid tokens of the global batch divided
        by their count. The count is known before the first backward, each token's loss carries
        the factor 1/count from its source, and nothing divides afterwards.

        Args:
            micro_batches: the whole global batch; all of one shape.

        Raises:
            ValueError: the micro-batches differ in shape, or no token of the batch is valid.
        """
        _check_shapes(micro_batches)
        num_tokens = int(sum(int(batch.loss_mask.sum()) for batch in micro_batches))
        if num_tokens == 0:
            raise ValueError("loss_mask: no token of the global batch counts in the loss")
        for _, parameter in self.module.named_parameters():
            parameter.grad = None
        total = torch.zeros((), dtype=torch.float64)
        for batch in micro_batches:
            weights = batch.loss_mask.to(self._dtype()) / num_tokens
            loss = self._train_loss(batch, weights)
            loss.backward()
            total += loss.detach().to("cpu", torch.float64)
        return LossStats(loss=float(total), num_tokens=num_tokens)

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterator[MicroBatch]) -> LossStats:
        """Return the loss over all valid tokens of `micro_batches`, without gradients.

        Dropout is off. The micro-batches are taken one at a time and may differ in shape.

        Raises:
            ValueError: there is no valid token.
        """
        total, num_tokens = torch.zeros((), dtype=torch.float64), 0
        was_training = self.module.training
        self.module.eval()
        try:
            for batch in micro_batches:
                loss = self._train_loss(batch, batch.loss_mask.to(self._dtype()))
                total += loss.to("cpu", torch.float64)
                num_tokens += int(batch.loss_mask.sum())
        finally:
            self.module.train(was_training)
        if num_tokens == 0:
            raise ValueError("loss_mask: no token of the evaluation data counts in the loss")
        return LossStats(loss=float(total) / num_tokens, num_tokens=num_tokens)

    def grad_norm(self) -> torch.Tensor:
        """Return the 2-norm of the global gradient, a scalar; each parameter counts once.

        Raises:
            ValueError: a parameter has no gradient.
        """
        gradients = []
        for shard in self.shards():
            if shard.tensor.grad is None:
                raise ValueError(f"{shard.name}: has no gradient; call forward_backward first")
            if shard.placement.replica == 0:
                gradients.append(shard.tensor.grad)
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def _train_loss(self, batch: MicroBatch, weights: torch.Tensor) -> torch.Tensor:
        model: Any = self.module
        return model.train_loss(batch.inputs, batch.labels, weights, batch.context)

    def _dtype(self) -> torch.dtype:
        dtype = next(self.module.parameters()).dtype
        return torch.promote_types(dtype, torch.float32)


def _check_shapes(micro_batches: Sequence[MicroBatch]) -> None:
    shapes = {tuple(batch.inputs.shape) for batch in micro_batches}
    if len(shapes) != 1:
        raise ValueError(
            f"micro_batches: all of one step must have one shape, got {sorted(shapes) or 'none'}"
        )


def _materialize(model: nn.Module, device: torch.device) -> None:
    """Replace every tensor of `model` by an uninitialized one on `device`; tied ones stay tied."""
    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in replaced:
                replaced[id(parameter)] = nn.Parameter(
                    torch.empty_like(parameter, device=device), parameter.requires_grad
                )
            module._parameters[name] = replaced[id(parameter)]
        for name, buffer in module._buffers.items():
            assert buffer is None or not buffer.is_meta, f"buffer {name} has no value to move"
            module._buffers[name] = None if buffer is None else buffer.to(device)
