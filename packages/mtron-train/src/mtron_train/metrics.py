"""Where the numbers of a run go: sinks behind one protocol."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

METRICS_FILE = "metrics.jsonl"


class MetricSink(Protocol):
    """Takes the metrics of a step; values are floats under slash-separated names."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` as measured at the end of `step`."""
        ...

    def close(self) -> None:
        """Flush and let go of the files."""
        ...


class JsonLinesSink:
    """One JSON object per record in `metrics.jsonl`: the step and its values.

    A resumed run drops what an earlier process recorded past the checkpoint, so that every step
    is in the file once.
    """

    def __init__(self, directory: Path, resumed_step: int) -> None:
        path = directory / METRICS_FILE
        kept = [r for r in read_metrics(directory) if r["step"] <= resumed_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """TensorBoard event files in `tensorboard/`."""

    def __init__(self, directory: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Return the records of `metrics.jsonl`; a last line cut off by a crash is left out."""
    path = directory / METRICS_FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
