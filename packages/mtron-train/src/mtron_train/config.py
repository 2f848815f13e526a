"""The configuration of a run: one frozen tree over the packages' own configurations."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from mtron_models import ModelConfig
from mtron_optim import KernelConfig, OptimConfig, ScheduleConfig
from mtron_parallel import ParallelConfig


class Section(BaseModel):
    """A section of the file: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


class RunSection(Section):
    """What the run is and where it lives."""

    directory: str
    """Directory of everything that the run writes; starting again with the same one resumes."""
    steps: int = Field(gt=0)
    """Optimizer steps of the whole run."""
    seed: int = Field(default=0, ge=0)
    """Key of every random number: initial weights, dropout, sample order."""
    device: str = "auto"
    """Where to compute: auto (CUDA if there is one, else CPU), cpu, cuda or cuda:N."""
    dtype: Literal["float32", "float64"] = "float32"
    """Element type of weights, gradients and optimizer state."""


class DataSection(Section):
    """What to train on."""

    train: str
    """Prepared dataset (a directory written by mtron-data prepare)."""
    validation: str | None = None
    """Prepared dataset for validation; none: no validation."""
    seq_len: int = Field(gt=0)
    """Tokens per sample."""
    global_batch_size: int = Field(gt=0)
    """Samples per optimizer step."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Samples that go through the model at once; none: a data-parallel rank's whole share."""
    mask_documents: bool = False
    """Whether tokens attend only within their own document."""


class CheckpointSection(Section):
    """When to save and what to keep. The last step of a run is always saved."""

    every_steps: int = Field(default=1000, gt=0)
    """Steps between checkpoints."""
    keep_last: int = Field(default=2, gt=0)
    """Newest checkpoints to keep."""
    keep_every: int | None = Field(default=None, gt=0)
    """Keep for ever those whose step is a multiple of this."""


class ValidationSection(Section):
    """When to measure the loss on data.validation. The last step is always measured whole."""

    every_steps: int = Field(default=500, gt=0)
    """Steps between validations."""
    batch_size: int = Field(default=16, gt=0)
    """Samples that go through the model at once."""
    max_samples: int | None = Field(default=None, gt=0)
    """Samples per validation during the run, evenly spaced; none: all."""


class LogSection(Section):
    """Which metrics to write and how often."""

    every_steps: int = Field(default=10, gt=0)
    """Steps between records in metrics.jsonl and TensorBoard, averaged in between."""
    tensorboard: bool = True
    """Whether to write TensorBoard files."""
    plot: bool = True
    """Whether to draw curves.png at every checkpoint and at the end."""


class RunConfig(Section):
    """Everything that decides a run."""

    run: RunSection
    model: SerializeAsAny[ModelConfig]
    """The model; model.model_type selects the family, whose own fields follow."""
    data: DataSection
    optim: OptimConfig
    schedule: ScheduleConfig
    parallel: ParallelConfig = ParallelConfig()
    """How the run is spread over processes; its numbers do not depend on it."""
    kernels: KernelConfig = KernelConfig()
    checkpoint: CheckpointSection = CheckpointSection()
    validation: ValidationSection = ValidationSection()
    log: LogSection = LogSection()

    @property
    def micro_batch_size(self) -> int:
        """Samples that go through the model at once."""
        return self.data.micro_batch_size or self.data.global_batch_size // self.parallel.dp

    @property
    def num_microbatches(self) -> int:
        """Micro-batches per optimizer step and data-parallel rank."""
        return self.data.global_batch_size // (self.micro_batch_size * self.parallel.dp)
