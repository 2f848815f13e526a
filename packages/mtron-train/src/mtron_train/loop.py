"""The loop of a run: step, record, validate, save, until done or asked to stop."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from mtron_models import flops_per_token
from mtron_optim import measure_matmul_peak
from mtron_train.assembly import Run
from mtron_train.config import RunConfig
from mtron_train.interrupt import StopRequest
from mtron_train.meter import Meter
from mtron_train.metrics import JsonLinesSink, MetricSink, TensorBoardSink
from mtron_train.plot import plot_curves
from mtron_train.progress import ProgressLine
from mtron_train.state import snapshot
from mtron_train.step import StepResult, train_step
from mtron_train.validation import Validation


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: steps done.
        finished: whether that is all of them; if not, the same call goes on from here.
        validation_loss: nats per token over all of data.validation; none unless finished with it.
    """

    step: int
    finished: bool
    validation_loss: float | None


def train(run: Run, progress: ProgressLine, stop: StopRequest) -> Outcome:
    """Take the steps that are left.

    Args:
        run: from `assemble`.
        progress: where to say how it goes.
        stop: ends the loop after the current step, with a checkpoint.

    Raises:
        FloatingPointError: a loss or gradient was not finite; nothing of that step is kept.
        OSError: a checkpoint could not be saved; earlier ones are whole.
    """
    return _Loop(run, progress, stop).run()


class _Loop:
    def __init__(self, run: Run, progress: ProgressLine, stop: StopRequest) -> None:
        config, state = run.config, run.state
        self.run_, self.config, self.state = run, config, state
        self.saved_step = None if run.resumed is None else run.resumed.step
        self.progress, self.stop = progress, stop
        self.directory = Path(config.run.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.validation = Validation(config) if config.data.validation else None
        self.is_first = run.job.rank == 0
        self.sinks = _sinks(config, state.step) if self.is_first else []
        peak = measure_matmul_peak(state.model.mesh.device, getattr(torch, config.run.dtype))
        self.meter = Meter(
            flops_per_token(config.model, config.data.seq_len),
            peak * run.job.world_size,  # all processes measure at once, each its share
            config.optim.lr,
        )

    def run(self) -> Outcome:
        state, total = self.state, self.config.run.steps
        with ExitStack() as cleanup:
            cleanup.enter_context(self.run_.checkpoints)
            cleanup.callback(state.loader.close)
            for sink in self.sinks:
                cleanup.callback(sink.close)
            self.meter.start()
            while state.step < total and not self.run_.job.any(self.stop.requested):
                self._record(train_step(state, self.config))
                self._every(self.config.validation.every_steps, self._validate)
                self._every(self.config.checkpoint.every_steps, self._save)
            finished = state.step >= total
            loss = self._finish() if finished else None
            self._save()
        return Outcome(state.step, finished, loss)

    def _every(self, interval: int, action: Callable[[], None]) -> None:
        """Do what is due at this step; its time does not count as training. The end has its own."""
        if self.state.step % interval == 0 and self.state.step < self.config.run.steps:
            self.meter.stop()
            action()
            self.meter.start()

    def _record(self, result: StepResult) -> None:
        step, total = self.state.step, self.config.run.steps
        self.meter.add(result)
        if step % self.config.log.every_steps and step < total:
            return
        values = self.meter.record()
        self._write(values)
        left = (total - step) * self.meter.seconds_per_step
        self.progress.update(
            step, values["loss/train"], values["tokens_per_second"], values["mfu"], left
        )

    def _write(self, values: dict[str, float]) -> None:
        for sink in self.sinks:
            sink.write(self.state.step, values)

    def _validate(self) -> None:
        if self.validation is not None:
            self._measure(self.config.validation.max_samples)

    def _measure(self, max_samples: int | None) -> float:
        assert self.validation is not None
        loss = self.validation.measure(self.state.model, max_samples).loss
        self._write({"loss/validation": loss})
        self.progress.validated(loss)
        return loss

    def _finish(self) -> float | None:
        return None if self.validation is None else self._measure(None)

    def _save(self) -> None:
        if self.saved_step == self.state.step:
            return
        self.run_.checkpoints.save(*snapshot(self.state, self.config))
        self.saved_step = self.state.step
        if self.config.log.plot and self.is_first:
            plot_curves(self.directory)


def _sinks(config: RunConfig, step: int) -> list[MetricSink]:
    directory = Path(config.run.directory)
    sinks: list[MetricSink] = [JsonLinesSink(directory, step)]
    if config.log.tensorboard:
        sinks.append(TensorBoardSink(directory, step))
    return sinks
