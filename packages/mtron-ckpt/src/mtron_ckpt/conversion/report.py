"""What a conversion did."""

from dataclasses import dataclass
from pathlib import Path

from mtron_ckpt.conversion.detect import Format


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        source: what was read.
        destination: the directory that was written.
        source_format: format of the source.
        target_format: format of the destination.
        model_type: the model family.
        num_tensors: tensors converted.
        num_bytes: size of their data.
        notes: what the source has and the destination does not, one line each.
    """

    source: Path
    destination: Path
    source_format: Format
    target_format: Format
    model_type: str
    num_tensors: int
    num_bytes: int
    notes: tuple[str, ...]
