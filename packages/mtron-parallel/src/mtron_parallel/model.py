"""A plain model attached to a mesh: forward and backward over micro-batches, its shards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtron_parallel.batch import LossStats, MicroBatch
from mtron_parallel.block import Block
from mtron_parallel.collectives import Group, all_reduce
from mtron_parallel.cuts import Rule, ShardRule, computes_part
from mtron_parallel.flat import rows_of
from mtron_parallel.gradients import Gradients, LocalGradients, Trained
from mtron_parallel.local import LocalParameter, localize, replace_parameters
from mtron_parallel.mesh import Mesh
from mtron_parallel.placement import ParameterShard, Placement, pieces_of
from mtron_parallel.sharding import divide, whole_shard
from mtron_parallel.tensor_parallel import Region, attach_tensor_parallelism
from mtron_parallel.weights import Weights, wait_before_use

Values = Callable[[str, Block], Tensor]
"""From a parameter's name and a block to the block's values."""


class TrainableModel(Protocol):
    """What `parallelize` needs of a model, next to its being an `nn.Module`."""

    def train_loss(self, inputs: Tensor, labels: Tensor, weights: Tensor, context: Any) -> Tensor:
        """Return the sum over `[batch, seq]` of the per-token loss times its weight."""
        ...


def parallelize(model: nn.Module, mesh: Mesh, layout: Mapping[str, Rule]) -> "ParallelModel":
    """Attach `model` to `mesh`: cut its parameters, register the hooks that communicate.

    Args:
        model: a plain module with `train_loss`, on the meta device or not; where it has values,
            they are kept.
        mesh: the processes and this one's device.
        layout: the model's layout table, from patterns of parameter names to how they may be cut.

    Returns:
        The model, ready for `fill` (if it has no values) and then for `forward_backward`.

    Raises:
        ValueError: the layout table leaves a parameter without a rule, or the ranks cannot follow
            one; a module with a cut parameter is of no known kind.
    """
    whole = dict(model.named_parameters())
    local = localize(model, layout, mesh.size("tp"), mesh.rank("tp"))
    parallel = ParallelModel(model, mesh, local)
    if not any(parameter.is_meta for parameter in whole.values()):
        parallel.fill(lambda name, block: whole[name].detach()[block.slices])
    return parallel


class ParallelModel:
    """A model on a mesh. Build it with `parallelize`.

    Attributes:
        module: the model, with local parameters.
        mesh: the processes.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, local: Mapping[str, LocalParameter]) -> None:
        self.module = model
        self.mesh = mesh
        self._local = dict(local)
        self._partial = _partial_groups(self._local, mesh)
        self._region = Region(mesh.group("tp"), mesh.config.sequence_parallel)
        if mesh.size("tp") > 1:
            attach_tensor_parallelism(model, self._local, self._region)
        self._gradients: Gradients | None = None
        self._shards: list[ParameterShard] = []
        self._weights: list[Weights] = []
        self._early: list[Weights] = []

    def placements(self) -> dict[str, Placement]:
        """Return for every parameter, by global name, the part that this rank updates."""
        held = {shard.name: shard.placement for shard in self._shards}
        nothing = {
            name: Placement(local.global_shape, local.parameter.dtype, (), replica=0)
            for name, local in self._local.items()
        }
        return nothing | held

    def shards(self) -> list[ParameterShard]:
        """Return the tensors that this rank's optimizer updates, in the model's order."""
        return list(self._shards)

    @torch.no_grad()
    def fill(self, values: Values) -> None:
        """Give every parameter storage on the mesh's device and its values.

        Initialization and loading are the same operation: both say what block of which
        parameter is wanted. A tied parameter is asked for once, by its first name.

        Args:
            values: returns the values of a block of a named parameter, in the block's shape.
        """
        if self._gradients is None:
            self._materialize()
        self.wait()
        for name, local in self._local.items():
            for piece in pieces_of(local.cut, 0, rows_of(local.cut.shape)[0]):
                piece.view(local.parameter).copy_(values(name, piece.block))

    def forward_backward(self, micro_batches: Sequence[MicroBatch]) -> LossStats:
        """Run forward and backward of one global batch; gradients are in the shards afterwards.

        The loss is the sum of per-token losses over the valid tokens of the global batch divided
        by their count. The count is known before the first backward, each token's loss carries
        the factor 1/count from its source, and nothing divides afterwards.

        Args:
            micro_batches: this rank's part of the global batch, as many as the other
                data-parallel ranks have; all of one shape.

        Raises:
            ValueError: the micro-batches differ in shape, or no token of the batch is valid.
            CollectiveTimeout: another rank did not take part in time.
            PeerLost: another rank has ended.
        """
        _check_shapes(micro_batches)
        gradients = self._ready()
        data = self.mesh.group("dp")
        masks = torch.stack([batch.loss_mask.sum(dtype=torch.float64) for batch in micro_batches])
        count = masks.sum()
        counting = all_reduce(count, data)
        gradients.begin()
        counting.wait()
        divisor = count.clamp(min=1).to(self._dtype())
        total = torch.zeros_like(count)
        for index, batch in enumerate(micro_batches):
            gradients.micro_batch(last=index == len(micro_batches) - 1)
            weights = batch.loss_mask.to(self._dtype()) / divisor
            loss = self._train_loss(batch, weights)
            loss.backward()
            gradients.end_micro_batch()
            total += loss.detach()
        adding = all_reduce(total, data)
        gradients.finish()
        adding.wait()
        num_tokens = int(count)
        if num_tokens == 0:
            raise ValueError("loss_mask: no token of the global batch counts in the loss")
        return LossStats(loss=float(total), num_tokens=num_tokens)

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterator[MicroBatch]) -> LossStats:
        """Return the loss over all valid tokens of all ranks' `micro_batches`, without gradients.

        Dropout is off. The micro-batches are taken one at a time and may differ in shape, and
        data-parallel ranks may have different numbers of them.

        Raises:
            ValueError: there is no valid token.
        """
        total = torch.zeros(2, dtype=torch.float64, device=self.mesh.device)
        was_training = self.module.training
        self.module.eval()
        try:
            for batch in micro_batches:
                total[0] += self._train_loss(batch, batch.loss_mask.to(self._dtype()))
                total[1] += batch.loss_mask.sum()
        finally:
            self.module.train(was_training)
        all_reduce(total, self.mesh.group("dp")).wait()
        num_tokens = int(total[1])
        if num_tokens == 0:
            raise ValueError("loss_mask: no token of the evaluation data counts in the loss")
        return LossStats(loss=float(total[0]) / num_tokens, num_tokens=num_tokens)

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """Return the 2-norm of the global gradient, an fp64 scalar; each element counts once.

        Raises:
            ValueError: a parameter has no gradient.
        """
        gradients = []
        for shard in self._shards:
            if not shard.tensor.requires_grad:
                continue
            if shard.tensor.grad is None:
                raise ValueError(f"{shard.name}: has no gradient; call forward_backward first")
            if shard.placement.replica == 0:
                gradients.append(shard.tensor.grad)
        square = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients))
            square = torch.linalg.vector_norm(norms).to(torch.float64).square()
        all_reduce(square, self.mesh.group("world")).wait()
        return square.sqrt()

    def publish(self) -> None:
        """Give every rank the weights that the others have updated; call it after each update.

        With `overlap` it only begins: each block of the model waits for its own when it runs next.
        """
        for weights in self._weights:
            weights.publish()
        if not self.mesh.config.overlap:
            self.wait()

    def wait(self) -> None:
        """Wait until the weights that were published are there."""
        for weights in self._weights:
            weights.wait()

    def _materialize(self) -> None:
        """Give every tensor of the model uninitialized storage on the mesh's device."""
        device = self.mesh.device
        for module in self.module.modules():
            for name, buffer in module._buffers.items():
                assert buffer is None or not buffer.is_meta, f"buffer {name} has no value to move"
                module._buffers[name] = None if buffer is None else buffer.to(device)
        replaced = {}
        for name, local in self._local.items():
            values = torch.zeros_like(local.parameter, device=device)
            parameter = nn.Parameter(values, local.parameter.requires_grad)
            replaced[id(local.parameter)] = parameter
            self._local[name] = replace(local, parameter=parameter)
        replace_parameters(self.module, replaced)
        self._divide()

    def _divide(self) -> None:
        """Decide what this rank updates and how gradients get there."""
        trained = [
            Trained(name, local.parameter, self._partial.get(name))
            for name, local in self._local.items()
            if local.parameter.requires_grad
        ]
        data, config = self.mesh.group("dp"), self.mesh.config
        if data.size == 1:
            self._gradients = LocalGradients(trained)
            self._shards = [whole_shard(local) for local in self._local.values()]
            return
        result = divide(
            self._local, trained, data, config.zero, config.bucket_bytes, config.overlap
        )
        self._gradients, self._shards = result.gradients, result.shards
        self._weights = result.weights
        self._early = wait_before_use(self.module, result.weights)

    def _ready(self) -> Gradients:
        assert self._gradients is not None, "fill gives the model its values first"
        return self._gradients

    def _train_loss(self, batch: MicroBatch, weights: Tensor) -> Tensor:
        model: Any = self.module
        is_plain = isinstance(model.train_loss, MethodType)  # of a compiled one no hook waits
        for flat in self._early if is_plain else self._weights:
            flat.wait()
        context = self._region.begin(batch.inputs, batch.context)
        return model.train_loss(batch.inputs, batch.labels, weights, context)

    def _dtype(self) -> torch.dtype:
        dtype = next(self.module.parameters()).dtype
        return torch.promote_types(dtype, torch.float32)


def _check_shapes(micro_batches: Sequence[MicroBatch]) -> None:
    shapes = {tuple(batch.inputs.shape) for batch in micro_batches}
    if len(shapes) != 1:
        raise ValueError(
            f"micro_batches: all of one step must have one shape, got {sorted(shapes) or 'none'}"
        )


def _partial_groups(local: Mapping[str, LocalParameter], mesh: Mesh) -> dict[str, Group]:
    """Return the parameters of whose gradient each of several ranks computes a part."""
    tensor, shared = mesh.group("tp"), dict[int, Group]()
    found = {}
    for name, entry in local.items():
        replicas = entry.cut.replicas
        if isinstance(entry.rule, ShardRule) and replicas > 1 and entry.dim is not None:
            if replicas not in shared:
                shared[replicas] = mesh.part("tp", replicas)
            found[name] = shared[replicas]
        elif computes_part(entry.rule, mesh.config.sequence_parallel) and tensor.size > 1:
            found[name] = tensor
    return found
