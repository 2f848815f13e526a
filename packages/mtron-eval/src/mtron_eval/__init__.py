"""Offline evaluation of checkpoints, with every number reproducible from the report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_eval.config import EvalConfig as EvalConfig
    from mtron_eval.documents import Document as Document
    from mtron_eval.documents import read_documents as read_documents
    from mtron_eval.registry import Task as Task
    from mtron_eval.registry import find_task as find_task
    from mtron_eval.registry import task_names as task_names
    from mtron_eval.results import Metric as Metric
    from mtron_eval.results import Results as Results
    from mtron_eval.results import TaskResult as TaskResult
    from mtron_eval.runner import evaluate as evaluate
    from mtron_eval.scoring import Scorer as Scorer

__all__ = [
    "Document",
    "EvalConfig",
    "Metric",
    "Results",
    "Scorer",
    "Task",
    "TaskResult",
    "evaluate",
    "find_task",
    "read_documents",
    "task_names",
]
_MODULES = {
    "Document": "mtron_eval.documents",
    "EvalConfig": "mtron_eval.config",
    "Metric": "mtron_eval.results",
    "Results": "mtron_eval.results",
    "Scorer": "mtron_eval.scoring",
    "Task": "mtron_eval.registry",
    "TaskResult": "mtron_eval.results",
    "evaluate": "mtron_eval.runner",
    "find_task": "mtron_eval.registry",
    "read_documents": "mtron_eval.documents",
    "task_names": "mtron_eval.registry",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
