"""The Llama models that the benchmarks of parallel training take, whole and on a mesh."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from contenders import random_batches
from shapes import Shape
from torch import Tensor, nn

from mtron_models import Context, LlamaConfig, build, initial_values, initialize
from mtron_parallel import Mesh, MicroBatch, ParallelConfig, ParallelModel, parallelize

SEED = 0
SHAPES = {
    "4M": Shape("4M", 2048, 256, 704, 4, 8, seq_len=128, batch_size=4),
    "12M": Shape("12M", 2048, 384, 1024, 6, 8, seq_len=128, batch_size=4),
    "tiny": Shape("tiny", 256, 64, 128, 2, 4, seq_len=32, batch_size=2),
}
"""By name; `batch_size` is rows per data-parallel rank."""


def whole_llama(shape: Shape) -> nn.Module:
    """Build the model in this process."""
    model = build(LlamaConfig(**shape.model_fields())).to_empty(device="cpu")
    initialize(model, SEED)
    return model


def llama_on_mesh(shape: Shape, layout: ParallelConfig) -> ParallelModel:
    """Build the same model over all ranks of the job; every rank calls this."""
    model: Any = build(LlamaConfig(**shape.model_fields()))
    draw = initial_values(model, SEED)
    parallel = parallelize(model, Mesh.over(layout, "cpu"), model.layout())
    parallel.fill(lambda name, block: draw(name, block.offset, block.shape))
    return parallel


def tokens_of_rank(shape: Shape, rank: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a data-parallel rank's tokens and labels, `[batch, seq]`, for ever."""
    rows = slice(rank * shape.batch_size, (rank + 1) * shape.batch_size)
    for tokens, labels in random_batches(replace(shape, batch_size=size * shape.batch_size)):
        yield tokens[rows], labels[rows]


def micro_batches(shape: Shape, mesh: Mesh) -> Iterator[MicroBatch]:
    """Yield the same for this rank of a mesh, as micro-batches."""
    for tokens, labels in tokens_of_rank(shape, mesh.rank("dp"), mesh.size("dp")):
        yield MicroBatch(tokens, labels, torch.ones(tokens.shape), Context())
