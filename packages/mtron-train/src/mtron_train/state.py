"""What a run carries from step to step, and its form in a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mtron_ckpt import Checkpoint, LocalArray, Metadata
from mtron_ckpt.torch_io import from_torch, to_torch
from mtron_data import Loader
from mtron_optim import export_state, load_state
from mtron_parallel import Block, ParallelModel
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


def snapshot(state: TrainState, config: RunConfig) -> tuple[dict[str, list[LocalArray]], Metadata]:
    """Describe everything that a checkpoint of `state` holds; the arrays share its memory."""
    placements = state.model.placements()
    tensors = {f"param/{s.name}": s.tensor.detach() for s in state.model.shards()}
    optimizer_tensors, scalars = export_state(state.optimizer)
    arrays = {
        name: _local_arrays(tensor, placements[name.partition("/")[2]].blocks)
        for name, tensor in {**tensors, **optimizer_tensors}.items()
    }
    metadata = Metadata(
        step=state.step,
        config=config.model_dump(mode="json"),
        state={
            "train": {"step": state.step, "tokens": state.tokens},
            "loader": state.loader.state(),
            "optimizer": scalars,
        },
        layout={"world_size": 1},
        assets=_tokenizer_assets(Path(config.data.train)),
    )
    return arrays, metadata


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Give `state` the optimizer state and position of `checkpoint` (the model is filled already).

    Raises:
        ValueError: the checkpoint belongs to another optimizer.
    """
    names = [n for n in checkpoint.names() if not n.startswith("param/")]
    tensors = {name: to_torch(checkpoint.read(name)) for name in names}
    load_state(state.optimizer, tensors, checkpoint.state["optimizer"])
    state.step = int(checkpoint.state["train"]["step"])
    state.tokens = int(checkpoint.state["train"]["tokens"])


def read_block(checkpoint: Checkpoint, name: str, block: Block) -> torch.Tensor:
    """Read the values of a block of a parameter."""
    return to_torch(checkpoint.read(f"param/{name}", block.slices))


def _local_arrays(tensor: torch.Tensor, blocks: tuple[Block, ...]) -> list[LocalArray]:
    array = from_torch(tensor)
    (block,) = blocks
    return [LocalArray(array, tuple(tensor.shape), block.offset)]


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
