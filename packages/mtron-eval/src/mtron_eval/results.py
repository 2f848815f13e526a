"""Results of an evaluation, and the JSON file that holds them."""

import json
import os
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS_VERSION = 1
"""Version of the JSON file's structure."""

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class Metric:
    """One number of a task.

    Attributes:
        value: the number.
        standard_error: over the documents; None where it cannot be estimated.
        unit: what it is counted in.
        higher_is_better: how to compare two values.
    """

    value: float
    standard_error: float | None
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class TaskResult:
    """What one task found.

    Attributes:
        name: of the task.
        version: of the task's definition; numbers of different versions do not compare.
        settings: what it was run with.
        counts: how much was scored.
        metrics: the totals by name.
        groups: the metrics of each domain that the data names.
        documents: one row per document.
    """

    name: str
    version: int
    settings: dict[str, Any]
    counts: dict[str, int]
    metrics: dict[str, Metric]
    groups: dict[str, dict[str, Metric]] = field(default_factory=dict)
    documents: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """The results of one evaluation and all that is needed to reproduce them.

    Attributes:
        provenance: model, tokenizer, data, configuration and environment.
        tasks: what each task found, by name.
    """

    provenance: dict[str, Any]
    tasks: dict[str, TaskResult]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, the content of the JSON file."""
        return {
            "results_version": RESULTS_VERSION,
            **self.provenance,
            "tasks": {name: asdict(result) for name, result in self.tasks.items()},
        }

    def save(self, path: str | Path) -> Path:
        """Writes the JSON file; it appears whole or not at all.

        Args:
            path: a file that ends in `.json`, or a directory, which gets `results.json`.

        Returns:
            the file that was written.

        Raises:
            OSError: if it cannot be written.
        """
        path = Path(path)
        target = path if path.suffix == ".json" else path / RESULTS_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        _write_atomically(target, text.encode())
        return target


def _write_atomically(target: Path, content: bytes) -> None:
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
