"""Averages between two records, and speed."""

import time
from collections.abc import Callable

from mtron_train.step import StepResult


class Meter:
    """Collects step results and turns them into one record of means.

    Args:
        flops_per_token: forward and backward of the model.
        peak_flops: what the machine does in matrix products, FLOP/s.
        base_learning_rate: the rate that the schedule's factor applies to.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        flops_per_token: float,
        peak_flops: float,
        base_learning_rate: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._base_learning_rate = base_learning_rate
        self._clock = clock
        self._results: list[StepResult] = []
        self._busy_seconds = 0.0
        self._started = clock()
        self.seconds_per_step = 0.0

    def start(self) -> None:
        """Begin to count time (what lies between a stop and a start is not training)."""
        self._started = self._clock()

    def stop(self) -> None:
        """Add the time since `start` to the time spent in training."""
        self._busy_seconds += self._clock() - self._started

    def add(self, result: StepResult) -> None:
        """Take the result of one step."""
        self._results.append(result)

    def record(self) -> dict[str, float]:
        """Return the means since the last record, and start over."""
        assert self._results, "a record needs at least one step"
        self.stop()
        self.start()
        results, seconds = self._results, max(self._busy_seconds, 1e-9)
        self._results, self._busy_seconds = [], 0.0
        count = len(results)
        self.seconds_per_step = seconds / count
        speed = sum(result.tokens for result in results) / seconds
        return {
            "loss/train": sum(result.loss for result in results) / count,
            "grad_norm": sum(result.grad_norm for result in results) / count,
            "learning_rate": self._base_learning_rate * results[-1].learning_rate_scale,
            "tokens_per_second": speed,
            "mfu": speed * self._flops_per_token / self._peak_flops,
        }
