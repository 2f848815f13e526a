"""Rotary frequencies and how they are scaled for longer sequences. Imports no torch."""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from torch import Tensor

_PARAMETERS = {
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "llama3": {
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    },
}
_REQUIRED = {"llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")}


class RopeScaling(BaseModel, frozen=True):
    """How rotary frequencies change for sequences longer than those of pretraining."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    rope_type: Literal["linear", "dynamic", "yarn", "llama3"]
    """`linear`: positions divided by `factor` (Chen et al., arXiv:2306.15595); `dynamic`: a base
    that grows with the sequence (NTK); `yarn` (Peng et al., arXiv:2309.00071); `llama3`: low
    frequencies divided by `factor` (Llama 3.1)."""
    factor: float = Field(ge=1, allow_inf_nan=False)
    """How many times longer sequences become."""
    original_max_position_embeddings: int | None = Field(default=None, ge=1)
    """Longest sequence of pretraining, in tokens; None: the model's max_position_embeddings."""
    low_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: waves longer than the original length divided by this are scaled in full."""
    high_freq_factor: float | None = Field(default=None, gt=0)
    """llama3: waves shorter than the original length divided by this are left alone."""
    beta_fast: float | None = Field(default=None, gt=0)
    """yarn: pairs that turn more often than this within the original length are left alone;
    None: 32."""
    beta_slow: float | None = Field(default=None, gt=0)
    """yarn: pairs that turn less often than this are scaled in full; None: 1."""
    attention_factor: float | None = Field(default=None, gt=0)
    """yarn: amplitude of the table; None: from the mscales, or 0.1 ln(factor) + 1."""
    mscale: float | None = None
    """yarn: weight of the logarithm in the amplitude (DeepSeek)."""
    mscale_all_dim: float | None = None
    """yarn: the same for all elements of a head; the amplitude is divided by it."""
    truncate: bool = True
    """yarn: whether the ends of the ramp are rounded to whole pairs."""

    @model_validator(mode="after")
    def _check(self) -> "RopeScaling":
        fits = _PARAMETERS[self.rope_type] | {"rope_type"}
        problems = [
            f"rope_scaling.{name}: has no effect with rope_type = {self.rope_type!r}; leave it out"
            for name in sorted(self.model_fields_set - fits)
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        problems += [
            f"rope_scaling.{name}: missing; rope_type = {self.rope_type!r} needs it"
            for name in _REQUIRED.get(self.rope_type, ())
            if getattr(self, name) is None
        ]
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            problems.append(
                f"rope_scaling.high_freq_factor: must be larger than low_freq_factor = {low}, "
                f"got {high}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def amplitude(self) -> float:
        """Return the factor of the table's cosines and sines: 1, but for yarn."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(
                self.factor, self.mscale_all_dim
            )
        return yarn_mscale(self.factor, 1.0)


def yarn_mscale(factor: float, weight: float) -> float:
    """Return `0.1 * weight * ln(factor) + 1`, by which longer sequences sharpen attention."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def frequencies(
    even: "Tensor",
    theta: float,
    scaling: RopeScaling | None = None,
    max_position_embeddings: int = 0,
    length: "int | Tensor" = 0,
) -> "Tensor":
    """Return by what angle each pair turns per position, `[rotary_dim / 2]`.

    Args:
        even: 0, 2, ... below the number of elements of a head that are turned; in the type in
            which to compute, fp32 or fp64.
        theta: base of the frequencies.
        scaling: for longer sequences.
        max_position_embeddings: of the model; the original length where `scaling` has none.
        length: tokens of the longest sequence so far; only `dynamic` looks at it.
    """
    rotary_dim = 2 * len(even)
    plain = 1.0 / theta ** (even / rotary_dim)
    if scaling is None:
        return plain
    original = scaling.original_max_position_embeddings or max_position_embeddings
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    if scaling.rope_type == "llama3":
        return _llama3(plain, scaling, original)
    if scaling.rope_type == "yarn":
        return _yarn(plain, even / 2, scaling, original, theta)
    longer = (even.new_zeros(()) + length).clamp(min=original) / original
    growth = scaling.factor * longer - (scaling.factor - 1)
    base = theta * growth ** (rotary_dim / (rotary_dim - 2))
    return 1.0 / base ** (even / rotary_dim)


def _llama3(plain: "Tensor", scaling: RopeScaling, original: int) -> "Tensor":
    """Divide long waves by the factor, leave short ones alone, blend in between."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None and high is not None
    turns = original * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(
    plain: "Tensor", pair: "Tensor", scaling: RopeScaling, original: int, theta: float
) -> "Tensor":
    """Leave pairs that turn often alone, divide slow ones by the factor, with a ramp between.

    Reference: Peng et al., arXiv:2309.00071, section 3.2.
    """
    rotary_dim = 2 * len(pair)

    def pair_with(turns: float) -> float:
        """Return the (fractional) pair that turns so often within the original length."""
        wave = original / (turns * 2 * math.pi)
        return rotary_dim * math.log(wave) / (2 * math.log(theta))

    first = pair_with(32.0 if scaling.beta_fast is None else scaling.beta_fast)
    last = pair_with(1.0 if scaling.beta_slow is None else scaling.beta_slow)
    if scaling.truncate:
        first, last = float(math.floor(first)), float(math.ceil(last))
    first, last = max(first, 0.0), min(last, rotary_dim - 1.0)
    last += 0.001 if first == last else 0.0
    scaled = ((pair - first) / (last - first)).clamp(0, 1)
    return plain * (1 - scaled) + plain / scaling.factor * scaled
