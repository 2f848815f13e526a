"""The tasks by name. A task is a class; a built-in one is a module and a line here."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import ClassVar, Protocol

from mtron_eval.config import EvalConfig
from mtron_eval.documents import DataFile
from mtron_eval.results import TaskResult
from mtron_eval.scoring import Progress, Scorer


class Task(Protocol):
    """Something that can be measured of a model.

    It is built before the model is loaded, so that bad data is found early.
    """

    name: ClassVar[str]
    """How it is asked for."""
    version: ClassVar[int]
    """Raised whenever its numbers change for the same model and data."""
    description: ClassVar[str]
    """One line for `mtron-eval list`."""

    def __init__(self, config: EvalConfig, data: Sequence[DataFile]) -> None:
        """Takes the data and checks it.

        Args:
            config: with `context` and `stride` filled in.
            data: the data files, read.
        """
        ...

    def run(self, scorer: Scorer, progress: Progress | None = None) -> TaskResult:
        """Measures the model."""
        ...


_BUILT_IN = {"perplexity": "mtron_eval.tasks.perplexity:Perplexity"}


def task_names() -> list[str]:
    """Names of the built-in tasks."""
    return sorted(_BUILT_IN)


def find_task(name: str) -> type[Task]:
    """The class of a built-in task.

    Raises:
        ValueError: if there is none of this name; the message has the nearest one.
    """
    if name not in _BUILT_IN:
        near = get_close_matches(name, _BUILT_IN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"tasks are: {', '.join(task_names())}"
        raise ValueError(f"tasks: unknown task, got {name!r}; {hint}")
    module, _, attribute = _BUILT_IN[name].partition(":")
    return getattr(import_module(module), attribute)
