"""The configuration of low-rank adapters. Imports no torch."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mtron_models.config import in_tuples, validated

ALL_LINEAR = "all-linear"

_OTHER_METHODS = {
    "use_dora": "weights split into magnitude and direction (DoRA)",
    "use_qalora": "adapters of grouped inputs (QA-LoRA)",
    "use_bdlora": "block-diagonal adapters",
    "lora_bias": "biases of the adapters",
    "fan_in_fan_out": "transposed linear layers",
    "rank_pattern": "ranks that differ between modules",
    "alpha_pattern": "alphas that differ between modules",
    "layer_replication": "layers that are repeated",
    "target_parameters": "adapters of parameters outside linear modules",
    "trainable_token_indices": "single trained tokens",
}
"""Fields of PEFT's configuration that ask for what is not built, and what that is."""


class LoraConfig(BaseModel, frozen=True):
    """Which linear layers get a low-rank adapter, and of what kind (arXiv:2106.09685).

    The field names are those of PEFT's `LoraConfig`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    target_modules: tuple[str, ...] | Literal["all-linear"]
    """Names of linear modules, or the last parts of them ("q_proj", "self_attn.q_proj"), in which
    `*` and `?` stand for any characters and character; "all-linear" for all but the head."""
    r: int = Field(default=8, ge=1)
    """Rank: rows of A and columns of B."""
    lora_alpha: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    """The adapter's output is multiplied by this over the rank."""
    use_rslora: bool = False
    """Whether it is divided by the root of the rank instead (arXiv:2312.03732)."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of zeroing an element of the input of A while training."""
    exclude_modules: tuple[str, ...] = ()
    """Modules among the targets that get no adapter, written like these."""
    modules_to_save: tuple[str, ...] = ()
    """Modules whose own parameters are trained as well, written like the targets."""
    bias: str = "none"
    """Which biases are trained: only "none" so far; PEFT also has "all" and "lora_only"."""
    task_type: str | None = None
    """What PEFT is told that the model does, such as "CAUSAL_LM"; without effect here."""
    base_model_name_or_path: str | None = None
    """Where the model comes from, for PEFT; without effect here."""

    @field_validator("bias")
    @classmethod
    def _no_bias(cls, value: str) -> str:
        if value != "none":
            raise ValueError(
                f"bias: only 'none' is built, got {value!r}; modules_to_save trains all "
                "parameters of a module"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> "LoraConfig":
        if not self.target_modules:
            raise ValueError('target_modules: must name a module, got (); use "all-linear" for all')
        return self

    @property
    def scaling(self) -> float:
        """Factor of the adapter's output."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


def lora_config_from_dict(values: Mapping[str, Any]) -> LoraConfig:
    """Return the configuration that `values` describes.

    Args:
        values: field names to values, such as the table `adapter` in the configuration of a
            checkpoint of adapters, or a parsed TOML table.

    Raises:
        ValueError: every problem on a line of its own; a field of PEFT that asks for something
            else than a plain adapter of linear layers is refused by name.
    """
    problems = [
        f"{name}: {what} are not built, got {values[name]!r}; leave it out"
        for name, what in _OTHER_METHODS.items()
        if values.get(name)
    ]
    if problems:
        raise ValueError("\n".join(problems))
    known = {name: value for name, value in values.items() if name not in _OTHER_METHODS}
    return validated(LoraConfig, in_tuples(known))
