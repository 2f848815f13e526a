"""From a configuration to a run that is ready to step: each arrow of the design is one call."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtron_ckpt import Checkpoint, CheckpointManager, Writers
from mtron_ckpt import open as open_checkpoint
from mtron_data import GPTDataset, Loader, TokenDataset, load_tokenizer
from mtron_models import build, initial_values
from mtron_optim import accelerate, build_optimizer
from mtron_parallel import Job, Mesh, ParallelModel, parallelize
from mtron_train.config import RunConfig
from mtron_train.state import TrainState, check_same_model, read_block, restore

CHECKPOINTS = "checkpoints"


@dataclass
class Run:
    """A run ready to step.

    Attributes:
        config: what was asked for.
        job: the processes that take part.
        state: model, optimizer and position, as new or as the newest checkpoint left them.
        checkpoints: where to save.
        resumed: the checkpoint that the state came from, if there was one.
    """

    config: RunConfig
    job: Job
    state: TrainState
    checkpoints: CheckpointManager
    resumed: Checkpoint | None


def assemble(config: RunConfig, job: Job | None = None) -> Run:
    """Build everything that a run needs, from the newest checkpoint if there is one.

    Args:
        config: made for as many processes as the job has.
        job: the processes; every one of them calls this. None: this process alone.

    Raises:
        ValueError: a dataset is missing or does not fit the model, a checkpoint does not fit
            the configuration, or the device does not exist.
    """
    check_datasets(config)
    job = job or Job.start({}, config.run.device)
    mesh = job.mesh(config.parallel)
    checkpoints = _checkpoints(config, job)
    latest = job.from_first(None if job.rank else _newest(checkpoints))
    checkpoint = None if latest is None else open_checkpoint(latest)
    if checkpoint is not None:
        check_same_model(checkpoint, config)
    model = _model(config, mesh, checkpoint)
    optimizer = build_optimizer(model.shards(), config.optim)
    state = TrainState(0, 0, model, optimizer, _loader(config, mesh, checkpoint))
    if checkpoint is not None:
        restore(state, checkpoint)
    return Run(config, job, state, checkpoints, checkpoint)


def check_datasets(config: RunConfig) -> None:
    """Refuse datasets that do not exist or do not fit the model.

    Raises:
        ValueError: naming the key of the configuration.
    """
    paths = {"data.train": config.data.train, "data.validation": config.data.validation}
    for key, path in paths.items():
        if path is None:
            continue
        try:
            TokenDataset(path)
            tokens = load_tokenizer(path).vocab_size
        except (ValueError, OSError) as error:
            raise ValueError(f"{key}: {error}") from None
        (vocab_size, *_) = config.model.parameter_shapes()["embed.weight"]
        if tokens > vocab_size:
            raise ValueError(
                f"{key}: the tokenizer of {path} has {tokens} tokens, more than "
                f"model.vocab_size = {vocab_size}; use at least {tokens}"
            )


def _checkpoints(config: RunConfig, job: Job) -> CheckpointManager:
    session = job.from_first(secrets.token_hex(8))
    return CheckpointManager(
        Path(config.run.directory) / CHECKPOINTS,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        writers=Writers(job.rank, job.world_size, session, config.parallel.timeout_seconds),
    )


def _newest(checkpoints: CheckpointManager) -> str | None:
    """Return the newest committed step; one rank decides, so that all resume from the same."""
    path = checkpoints.latest()
    return None if path is None else str(path)


def _model(config: RunConfig, mesh: Mesh, checkpoint: Checkpoint | None) -> ParallelModel:
    plain: Any = build(config.model, device="meta", dtype=getattr(torch, config.run.dtype))
    draw = initial_values(plain, config.run.seed)
    model = parallelize(plain, mesh, plain.layout())
    if checkpoint is None:
        model.fill(lambda name, block: draw(name, block.offset, block.shape))
    else:
        model.fill(lambda name, block: read_block(checkpoint, name, block))
    accelerate(model.module, config.kernels)
    return model


def _loader(config: RunConfig, mesh: Mesh, checkpoint: Checkpoint | None) -> Loader:
    dataset = GPTDataset(
        config.data.train,
        seq_len=config.data.seq_len,
        seed=config.run.seed,
        order="stream",
        reset_positions=config.data.mask_documents,
    )
    return Loader(
        dataset,
        micro_batch_size=config.micro_batch_size,
        state=None if checkpoint is None else checkpoint.state["loader"],
        dp_rank=mesh.rank("dp"),
        dp_size=mesh.size("dp"),
    )
