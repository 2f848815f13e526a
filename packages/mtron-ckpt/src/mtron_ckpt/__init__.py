"""Sharded, checksummed, layout-independent checkpoints and format conversion. No torch needed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtron_ckpt.arrays import ArrayInfo as ArrayInfo
    from mtron_ckpt.arrays import LocalArray as LocalArray
    from mtron_ckpt.arrays import Metadata as Metadata
    from mtron_ckpt.conversion.adapters.api import convert_adapter as convert_adapter
    from mtron_ckpt.conversion.api import convert as convert
    from mtron_ckpt.conversion.report import ConvertReport as ConvertReport
    from mtron_ckpt.errors import CorruptCheckpoint as CorruptCheckpoint
    from mtron_ckpt.errors import Damage as Damage
    from mtron_ckpt.errors import IncompleteCheckpoint as IncompleteCheckpoint
    from mtron_ckpt.manager import CheckpointManager as CheckpointManager
    from mtron_ckpt.reading import Checkpoint as Checkpoint
    from mtron_ckpt.reading import open as open
    from mtron_ckpt.saving import save as save
    from mtron_ckpt.staging import StagingPool as StagingPool
    from mtron_ckpt.verifying import VerifyReport as VerifyReport
    from mtron_ckpt.verifying import verify as verify
    from mtron_ckpt.writers import Writers as Writers
    from mtron_ckpt.writing import SaveHandle as SaveHandle
    from mtron_ckpt.zarr_dtypes import register_zarr_dtypes as register_zarr_dtypes
    from mtron_ckpt.zarr_view import zarr_store as zarr_store

_MODULES = {
    "ArrayInfo": "mtron_ckpt.arrays",
    "Checkpoint": "mtron_ckpt.reading",
    "CheckpointManager": "mtron_ckpt.manager",
    "ConvertReport": "mtron_ckpt.conversion.report",
    "CorruptCheckpoint": "mtron_ckpt.errors",
    "Damage": "mtron_ckpt.errors",
    "IncompleteCheckpoint": "mtron_ckpt.errors",
    "LocalArray": "mtron_ckpt.arrays",
    "Metadata": "mtron_ckpt.arrays",
    "SaveHandle": "mtron_ckpt.writing",
    "StagingPool": "mtron_ckpt.staging",
    "VerifyReport": "mtron_ckpt.verifying",
    "Writers": "mtron_ckpt.writers",
    "convert": "mtron_ckpt.conversion.api",
    "convert_adapter": "mtron_ckpt.conversion.adapters.api",
    "open": "mtron_ckpt.reading",
    "register_zarr_dtypes": "mtron_ckpt.zarr_dtypes",
    "save": "mtron_ckpt.saving",
    "verify": "mtron_ckpt.verifying",
    "zarr_store": "mtron_ckpt.zarr_view",
}

__all__ = [
    "ArrayInfo",
    "Checkpoint",
    "CheckpointManager",
    "ConvertReport",
    "CorruptCheckpoint",
    "Damage",
    "IncompleteCheckpoint",
    "LocalArray",
    "Metadata",
    "SaveHandle",
    "StagingPool",
    "VerifyReport",
    "Writers",
    "convert",
    "convert_adapter",
    "open",
    "register_zarr_dtypes",
    "save",
    "verify",
    "zarr_store",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
