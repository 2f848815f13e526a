"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Literal

from pydantic import Field, model_validator

from mtron_optim.config import Section

Decay = Literal["linear", "cosine", "sqrt"]


class ScheduleConfig(Section):
    """How the learning rate changes over a run."""

    kind: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """After the warm-up: stay; fall to the end in a line or half a cosine; or stay and fall in
    the last part of the run only (warm-up, stable, decay)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the rate rises from 0 in a line; the last of them has the full rate."""
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the full rate that is left at the end."""
    decay: Decay = "sqrt"
    """Shape of the fall for wsd: linear, cosine, or 1 - sqrt(progress), which falls fast first."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of the run's steps in which wsd falls."""
    total_steps: int | None = Field(default=None, gt=0)
    """Steps of the whole run; a training program fills it in."""

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        if self.total_steps is None or self.kind == "constant":
            return self
        if self.warmup_steps > self._decay_start():
            raise ValueError(
                f"warmup_steps: the rate must be up before it falls at step "
                f"{self._decay_start()} of {self.total_steps}, got {self.warmup_steps}; "
                "use fewer, or a smaller decay_fraction"
            )
        return self

    def resolve(self, total_steps: int) -> "ScheduleConfig":
        """Return this schedule for a run of `total_steps` steps, unless it says how many itself.

        Raises:
            ValueError: the warm-up does not fit into so many steps.
        """
        if self.total_steps is not None:
            return self
        return type(self)(**{**self.model_dump(exclude_unset=True), "total_steps": total_steps})

    def _decay_start(self) -> int:
        assert self.total_steps is not None
        if self.kind == "wsd":
            return self.total_steps - max(1, round(self.total_steps * self.decay_fraction))
        return min(self.warmup_steps, self.total_steps - 1)


def learning_rate_scale(config: ScheduleConfig, step: int) -> float:
    """Return the factor on every learning rate for one update.

    Args:
        config: the schedule.
        step: updates already done: 0 for the first one.

    Returns:
        A number in [0, 1]. It is `min_ratio` from `total_steps` on.

    Raises:
        ValueError: the schedule needs the length of the run and has none.
    """
    assert step >= 0, step
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    if config.total_steps is None:
        raise ValueError(
            f"schedule.total_steps: {config.kind!r} needs the length of the run; "
            "set it, or use ScheduleConfig.resolve"
        )
    start = config._decay_start()
    progress = (step - start) / (config.total_steps - start)
    if progress <= 0:
        return 1.0
    shape: Decay = config.decay if config.kind == "wsd" else config.kind
    left = _left(shape, min(progress, 1.0))
    return config.min_ratio + (1 - config.min_ratio) * left


def _left(shape: Decay, progress: float) -> float:
    """Return what is left of a fall from 1 to 0 at `progress` in [0, 1]."""
    if shape == "linear":
        return 1 - progress
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - math.sqrt(progress)
