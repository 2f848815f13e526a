"""The one function that evaluates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtron_eval.config import EvalConfig
from mtron_eval.documents import read_documents
from mtron_eval.provenance import CheckpointInfo, describe_run, read_checkpoint_info
from mtron_eval.registry import Task, find_task
from mtron_eval.results import Results
from mtron_eval.scoring import Progress, Scorer


def evaluate(
    source: str | Path | Scorer,
    tasks: Sequence[str | type[Task]],
    data: Sequence[str | Path],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Results:
    """Evaluates a model.

    Whatever can be wrong with the request, the data or the checkpoint's description is found
    before the weights are loaded.

    Args:
        source: a checkpoint (a root stands for its newest step), or a model that scores.
        tasks: names of built-in tasks, or task classes.
        data: paths of data files.
        context: most tokens that the model sees before the one it predicts; default: the length
            that the model was made for.
        stride: tokens that a window after the first scores; default: half of the context.
        batch_size: windows scored together.
        progress: told about tokens done, task by task.

    Raises:
        ValueError: naming what is wrong with the request, the data or the checkpoint.
        OSError: if a file cannot be read.
    """
    classes = [find_task(task) if isinstance(task, str) else task for task in tasks]
    config = EvalConfig(
        tasks=tuple(task.name for task in classes),
        data=tuple(map(str, data)),
        context=context,
        stride=stride,
        batch_size=batch_size,
    )
    files = read_documents(config.data)
    info = read_checkpoint_info(str(source)) if isinstance(source, str | Path) else None
    limit = info.max_context if info is not None else _scorer(source).max_context
    config = _fill_in(config, limit)
    running = [task(config, files) for task in classes]
    scorer = _load(info, config) if info is not None else _scorer(source)
    results = {task.name: task.run(scorer, progress) for task in running}
    return Results(describe_run(_describe_model(info, scorer), config, files), results)


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


def _load(info: CheckpointInfo, config: EvalConfig) -> Scorer:
    from mtron_eval.backend import EngineScorer  # needs torch, which takes seconds to import

    assert config.context is not None
    return EngineScorer(str(info.path), config.batch_size * (config.context + 1))


def _scorer(source: str | Path | Scorer) -> Scorer:
    assert not isinstance(source, str | Path)
    return source


def _describe_model(info: CheckpointInfo | None, scorer: Scorer) -> dict[str, Any]:
    described = info.to_dict() if info is not None else {"checkpoint": None}
    return described | {"scorer": type(scorer).__name__}
