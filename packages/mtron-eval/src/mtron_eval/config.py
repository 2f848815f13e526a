"""What an evaluation can be told. Imports no torch."""

from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype: TypeAlias = Literal["auto", "float64", "float32", "bfloat16", "float16"]
"""Type to compute in."""


class EvalConfig(BaseModel):
    """One evaluation: which tasks on which data, and how long texts are cut."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of the tasks; `mtron-eval list` shows them."""

    data: tuple[str, ...] = Field(min_length=1)
    """Data files (`.jsonl` or plain text), folders or patterns."""

    context: int | None = Field(default=None, ge=1)
    """Most tokens that the model sees before the one it predicts; default: the length that the
    model was made for."""

    stride: int | None = Field(default=None, ge=1)
    """Tokens that a window after the first scores; each has at least context - stride tokens
    before it. Default: half of the context."""

    batch_size: int = Field(default=8, ge=1)
    """Windows scored together; changes the speed, and the numbers only by rounding."""

    device: str = "auto"
    """Torch device to compute on; `auto` takes CUDA if there is one, else the CPU."""

    dtype: Dtype = "auto"
    """Type to compute in; `auto` takes that of the weights, on a CPU at least float32."""

    threads: int | None = Field(default=None, ge=1)
    """Processor threads; torch decides if not given."""

    @model_validator(mode="after")
    def _no_task_twice(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"tasks: a task is named twice, got {', '.join(self.tasks)}; name each once"
            )
        return self
