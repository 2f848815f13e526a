"""What a run carries from step to step, and its form in a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mtron_ckpt import Checkpoint, LocalArray, Metadata
from mtron_ckpt.torch_io import from_torch, to_torch
from mtron_data import Loader
from mtron_optim import export_state, load_state
from mtron_parallel import Block, ParallelModel, ParameterShard
from mtron_train.config import RunConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass
class TrainState:
    """The state of a run between two steps.

    Random numbers need no state: they are keyed by seed, step and index.

    Attributes:
        step: optimizer steps done.
        tokens: tokens trained on, those masked out of the loss included.
        model: the model on its mesh.
        optimizer: over the model's shards.
        loader: gives the next micro-batch; its cursor is the position in the data.
    """

    step: int
    tokens: int
    model: ParallelModel
    optimizer: torch.optim.Optimizer
    loader: Loader


Arrays = dict[str, list[LocalArray]]


def snapshot(state: TrainState, config: RunConfig) -> tuple[Arrays, Metadata]:
    """Describe what a checkpoint of `state` holds of this rank; the arrays share its memory."""
    shards = {shard.name: shard for shard in state.model.shards()}
    tensors, scalars = export_state(state.optimizer)
    arrays: Arrays = {}
    for name, shard in shards.items():
        arrays[f"param/{name}"] = _local_arrays(shard, shard.tensor.detach())
    for full_name, tensor in tensors.items():
        arrays[full_name] = _local_arrays(shards[full_name.partition("/")[2]], tensor)
    if scalars["fresh"]:
        # No rank has updated anything yet; the others' parameters are as fresh as these.
        assert not tensors, "every parameter has a gradient in every step"
        scalars = {**scalars, "fresh": list(state.model.placements())}
    metadata = Metadata(
        step=state.step,
        config=config.model_dump(mode="json"),
        state={
            "train": {"step": state.step, "tokens": state.tokens},
            "loader": state.loader.state(),
            "optimizer": scalars,
        },
        layout=config.parallel.model_dump(mode="json"),
        assets=_tokenizer_assets(Path(config.data.train)),
    )
    return arrays, metadata


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Give `state` the optimizer state and position of `checkpoint` (the model is filled already).

    Each rank reads what it holds, however the run that saved was laid out.

    Raises:
        ValueError: the checkpoint belongs to another optimizer.
    """
    stored = set(checkpoint.names())
    kinds = sorted({name.partition("/")[0] for name in stored} - {"param"})
    tensors = {
        f"{kind}/{shard.name}": _read_like(checkpoint, f"{kind}/{shard.name}", shard)
        for shard in state.model.shards()
        for kind in kinds
        if f"{kind}/{shard.name}" in stored
    }
    load_state(state.optimizer, tensors, checkpoint.state["optimizer"])
    state.step = int(checkpoint.state["train"]["step"])
    state.tokens = int(checkpoint.state["train"]["tokens"])


def read_block(checkpoint: Checkpoint, name: str, block: Block) -> torch.Tensor:
    """Read the values of a block of a parameter."""
    return to_torch(checkpoint.read(f"param/{name}", block.slices))


def _read_like(checkpoint: Checkpoint, name: str, shard: ParameterShard) -> torch.Tensor:
    """Read what belongs to a shard into a tensor of its shape."""
    values = torch.zeros_like(shard.tensor)
    for block, view in shard.blocks_of(values):
        view.copy_(to_torch(checkpoint.read(name, block.slices)))
    return values


def _local_arrays(shard: ParameterShard, tensor: torch.Tensor) -> list[LocalArray]:
    return [
        LocalArray(from_torch(view), shard.placement.global_shape, block.offset)
        for block, view in shard.blocks_of(tensor)
    ]


def _tokenizer_assets(dataset: Path) -> Mapping[str, bytes]:
    paths = [dataset / name for name in TOKENIZER_FILES]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def check_same_model(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse to resume a run whose model or element type has changed.

    Raises:
        ValueError: naming the first field that differs.
    """
    before = {**checkpoint.config["model"], "dtype": checkpoint.config["run"]["dtype"]}
    now = {**config.model.model_dump(mode="json"), "dtype": config.run.dtype}
    for field in sorted(before.keys() | now.keys()):
        if before.get(field) != now.get(field):
            path = "run.dtype" if field == "dtype" else f"model.{field}"
            raise ValueError(
                f"{path}: the checkpoint {checkpoint.path} was made with {before.get(field)!r}, "
                f"the configuration says {now.get(field)!r}; use another run.directory, or "
                "change it back"
            )
