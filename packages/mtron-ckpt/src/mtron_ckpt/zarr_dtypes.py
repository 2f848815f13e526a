"""bfloat16 and fp8 for zarr-python, which knows neither."""

from typing import Any, ClassVar, NoReturn

import numpy as np
from zarr.dtype import DataTypeValidationError, ZDType, data_type_registry

from mtron_ckpt.dtypes import ML_DTYPES


class MlDtype(ZDType[Any, Any]):
    """A zarr data type over an `ml_dtypes` element type; subclasses name the type.

    The stored bytes are little-endian, as the machines that this runs on are.
    """

    _native: ClassVar[np.dtype[Any]]

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype[Any]) -> "MlDtype":
        """Match a numpy dtype."""
        if dtype == cls._native:
            return cls()
        raise DataTypeValidationError(f"not {cls._native}: {dtype}")

    def to_native_dtype(self) -> np.dtype[Any]:
        """Return the numpy dtype."""
        return self._native

    @classmethod
    def _from_json_v2(cls, data: Any) -> NoReturn:
        raise DataTypeValidationError(f"{cls._native} is not a type of zarr v2")

    @classmethod
    def _from_json_v3(cls, data: Any) -> "MlDtype":
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"not {cls._native}: {data}")

    def to_json(self, zarr_format: Any) -> Any:
        """Return the zarr v3 name."""
        if zarr_format != 3:
            raise ValueError(f"zarr_format: {self._native} exists only in 3, got {zarr_format}")
        return self._zarr_v3_name

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, int | float | np.number) or type(data) is self._native.type

    def cast_scalar(self, data: object) -> Any:
        """Return a number as a scalar of this type."""
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is not a number that {self._native} can hold")
        return self._native.type(data)

    def default_scalar(self) -> Any:
        """Return zero."""
        return self._native.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        """Read a number, or one of the strings that zarr writes for those JSON lacks."""
        return self._native.type(float(data))

    def to_json_scalar(self, data: object, *, zarr_format: Any) -> float | str:
        """Return a number, or `"NaN"`, `"Infinity"`, `"-Infinity"`."""
        value = float(self.cast_scalar(data))
        if np.isnan(value):
            return "NaN"
        return value if np.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


_TYPES = tuple(
    type(
        f"Zarr_{name}",
        (MlDtype,),
        {"_native": dtype, "_zarr_v3_name": name, "dtype_cls": type(dtype)},
    )
    for name, dtype in ML_DTYPES.items()
)


def register_zarr_dtypes() -> None:
    """Let zarr-python open bfloat16 and fp8 arrays, in this process from now on.

    Types that zarr-python (or somebody else) has registered under these names stay.
    """
    for cls in _TYPES:
        if cls._zarr_v3_name not in data_type_registry.contents:
            data_type_registry.register(cls._zarr_v3_name, cls)
