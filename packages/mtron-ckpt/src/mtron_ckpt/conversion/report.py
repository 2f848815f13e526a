"""What a conversion did."""

from dataclasses import dataclass
from pathlib import Path

from mtron_ckpt.conversion.detect import Format


@dataclass(frozen=True)
class Converted:
    """What was converted.

    Attributes:
        model_type: the model family.
        num_tensors: tensors converted.
        num_bytes: size of their data.
        notes: what the source has and the destination does not, one line each.
    """

    model_type: str
    num_tensors: int
    num_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ConvertReport(Converted):
    """What was converted, from where to where.

    Attributes:
        source: what was read.
        source_format: its format.
        destination: the directory that was written.
        target_format: its format.
    """

    source: Path
    source_format: Format
    destination: Path
    target_format: Format
