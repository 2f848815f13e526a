"""From the loader's arrays to the micro-batches of a step."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mtron_data import Batch, Loader
from mtron_data.torch_io import to_torch
from mtron_models import Context, RandomKey, Report
from mtron_parallel import MicroBatch
from mtron_train.balancing import has_experts
from mtron_train.config import RunConfig


def global_batch(
    loader: Iterator[Batch], config: RunConfig, step: int, device: torch.device
) -> list[MicroBatch]:
    """Take this rank's micro-batches of one optimizer step from `loader`.

    Args:
        loader: yields arrays `[micro batch, seq]`.
        config: says how many micro-batches make a global batch, and the seed of dropout.
        step: the step that they are for (the key of dropout).
        device: where they go.
    """
    return [micro_batch(next(loader), config, device, step) for _ in range(config.num_microbatches)]


def micro_batch(
    arrays: Batch, config: RunConfig, device: torch.device, step: int | None
) -> MicroBatch:
    """Turn one dictionary of arrays into a micro-batch on `device`.

    Args:
        arrays: `tokens, labels, loss_mask, positions [batch, seq]`, `sample_ids [batch]`,
            `cu_seqlens`, `max_seqlen`.
        config: the run's.
        device: where the tensors go.
        step: key of dropout; none for evaluation, which has none, and no auxiliary losses.
    """
    tensors: dict[str, Any] = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in to_torch(arrays).items()
    }
    random = None
    if step is not None:  # families name their dropouts differently; without any it costs nothing
        random = RandomKey(seed=config.run.seed, step=step, sample_ids=tensors["sample_ids"])
    masked = config.data.mask_documents
    context = Context(
        positions=tensors["positions"] if masked else None,
        cu_seqlens=tensors["cu_seqlens"] if masked else None,
        max_seqlen=tensors["max_seqlen"] if masked else None,
        random=random,
    )
    if step is not None and has_experts(config.model):
        weight = 1 / config.data.global_batch_size
        context = replace(context, auxiliary_weight=weight, report=Report())
    return MicroBatch(tensors["tokens"], tensors["labels"], tensors["loss_mask"], context)


def evaluation_batches(
    loader: Loader, config: RunConfig, device: torch.device
) -> Iterator[MicroBatch]:
    """Yield all of a finite loader's batches without random numbers."""
    for arrays in loader:
        yield micro_batch(arrays, config, device, step=None)


def evenly_spaced(total: int, wanted: int | None) -> np.ndarray:
    """Return `wanted` indices spread over `range(total)`, or all of them."""
    if wanted is None or wanted >= total:
        return np.arange(total)
    return np.arange(wanted) * total // wanted
