"""What an evaluation can be told. Imports no torch."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EvalConfig(BaseModel):
    """One evaluation: which tasks on which data, and how long texts are cut."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of the tasks; `mtron-eval list` shows them."""

    data: tuple[str, ...] = Field(min_length=1)
    """Paths of the data files, `.jsonl` or plain text."""

    context: int | None = Field(default=None, ge=1)
    """Most tokens that the model sees before the one it predicts; default: the length that the
    model was made for."""

    stride: int | None = Field(default=None, ge=1)
    """Tokens that a window after the first scores; each has at least context - stride tokens
    before it. Default: half of the context."""

    batch_size: int = Field(default=8, ge=1)
    """Windows scored together; changes the speed and not the numbers."""

    @model_validator(mode="after")
    def _no_task_twice(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"tasks: a task is named twice, got {', '.join(self.tasks)}; name each once"
            )
        return self
