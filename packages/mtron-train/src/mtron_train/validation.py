"""The loss on held-out data."""

from mtron_data import GPTDataset, Loader
from mtron_parallel import LossStats, ParallelModel
from mtron_train.batches import evaluation_batches, evenly_spaced
from mtron_train.config import RunConfig


class Validation:
    """Measures the loss on `data.validation`, in order and without random numbers."""

    def __init__(self, config: RunConfig) -> None:
        assert config.data.validation is not None
        self._config = config
        self._dataset = GPTDataset(
            config.data.validation,
            seq_len=config.data.seq_len,
            order="sequential",
            reset_positions=config.data.mask_documents,
        )

    def measure(self, model: ParallelModel, max_samples: int | None) -> LossStats:
        """Return the loss over at most `max_samples` samples spread evenly over the data."""
        config = self._config
        loader = Loader(
            self._dataset,
            micro_batch_size=config.validation.batch_size,
            indices=evenly_spaced(len(self._dataset), max_samples),
            dp_rank=model.mesh.rank("dp"),
            dp_size=model.mesh.size("dp"),
        )
        return model.evaluate(evaluation_batches(loader, config, model.mesh.device))
