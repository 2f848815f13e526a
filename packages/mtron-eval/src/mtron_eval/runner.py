"""The one function that evaluates."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from mtron_eval.config import Dtype, EvalConfig
from mtron_eval.documents import DataFile, read_documents
from mtron_eval.provenance import describe_run, read_checkpoint_info
from mtron_eval.registry import Task, find_task
from mtron_eval.results import Results
from mtron_eval.scoring import Progress, Scorer


class Settings(TypedDict, total=False):
    """The fields of `EvalConfig` besides tasks and data."""

    context: int | None
    stride: int | None
    batch_size: int
    device: str
    dtype: Dtype
    threads: int | None


def evaluate(
    source: str | Path | Scorer,
    tasks: Sequence[str | type[Task]],
    data: Sequence[str | Path],
    *,
    progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> Results:
    """Evaluates a model.

    Whatever can be wrong with the request, the data or the checkpoint's description is found
    before the weights are loaded.

    Args:
        source: a checkpoint (a root stands for its newest step), or a model that scores.
        tasks: names of built-in tasks, or task classes.
        data: paths of data files.
        progress: told about tokens done, task by task.
        settings: the other fields of `EvalConfig`: `context`, `stride`, `batch_size`, and for a
            checkpoint `device`, `dtype`, `threads`.

    Raises:
        ValueError: naming what is wrong with the request, the data or the checkpoint.
        OSError: if a file cannot be read.
    """
    classes = [find_task(task) if isinstance(task, str) else task for task in tasks]
    config = EvalConfig(
        tasks=tuple(task.name for task in classes), data=tuple(map(str, data)), **settings
    )
    files = read_documents(config.data)
    if isinstance(source, str | Path):
        return _evaluate_checkpoint(str(source), classes, config, files, progress)
    given = sorted({"device", "dtype", "threads"} & set(settings))
    if given:
        raise ValueError(f"{given[0]}: belongs to a checkpoint, but the model is loaded already")
    config = _fill_in(config, source.max_context)
    running = [task(config, files) for task in classes]
    results = {task.name: task.run(source, progress) for task in running}
    return Results(describe_run({"scorer": type(source).__name__}, config, files), results)


def _evaluate_checkpoint(
    path: str,
    classes: Sequence[type[Task]],
    config: EvalConfig,
    files: Sequence[DataFile],
    progress: Progress | None,
) -> Results:
    info = read_checkpoint_info(path)
    config = _fill_in(config, info.max_context)
    running = [task(config, files) for task in classes]
    from mtron_eval.backend import EngineScorer  # needs torch, which takes seconds to import

    scorer = EngineScorer(str(info.path), config)
    results = {task.name: task.run(scorer, progress) for task in running}
    return Results(describe_run(info.to_dict() | scorer.describe(), config, files), results)


def _fill_in(config: EvalConfig, max_context: int) -> EvalConfig:
    """Settles context and stride.

    Raises:
        ValueError: if they do not fit the model or each other.
    """
    context = config.context or max_context
    if context > max_context:
        raise ValueError(
            f"context: the model was made for at most {max_context} tokens, got {context}; "
            f"use {max_context} or less"
        )
    stride = config.stride or max(1, context // 2)
    if stride > context:
        raise ValueError(
            f"stride: must not exceed the context of {context} tokens, or tokens would be "
            f"skipped, got {stride}; use {context} or less"
        )
    return config.model_copy(update={"context": context, "stride": stride})
