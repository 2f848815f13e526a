"""What the converter must know about a model family."""

from dataclasses import dataclass
from typing import Any, Protocol

from mtron_ckpt.conversion.names import NameTable, Pair


class ConfigMapping(Protocol):
    """Translates one family's model config; both directions refuse what they cannot honour."""

    def from_hf(self, hf: dict[str, Any], notes: list[str]) -> dict[str, Any]:
        """Our model config for a Hugging Face `config.json`; `notes` collects what is ignored."""
        ...

    def to_hf(self, model: dict[str, Any]) -> dict[str, Any]:
        """The Hugging Face `config.json`, without the dtype, for our model config."""
        ...

    def sizes(self, model: dict[str, Any]) -> dict[str, int]:
        """The sizes that the name table's shapes refer to."""
        ...


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        model_type: `model_type` in both formats.
        architecture: the class of `transformers` that this family is.
        table: names and shapes of its tensors.
        config: translation of its config.
    """

    model_type: str
    architecture: str
    table: NameTable
    config: ConfigMapping

    def tensors(self, model: dict[str, Any], num_found: int) -> list[Pair]:
        """Every tensor of a model.

        Args:
            model: our config.
            num_found: tensors in the source; bounds the work for a config that lies.

        Raises:
            ValueError: if there are more layers than tensors.
        """
        num_layers = model["num_hidden_layers"]
        if num_layers > num_found:
            raise ValueError(
                f"num_hidden_layers: there are only {num_found} tensors, got {num_layers} layers; "
                "check that config and weights belong together"
            )
        flags = {row.unless: bool(model[row.unless]) for row in self.table.rows if row.unless}
        return self.table.expand(self.config.sizes(model), flags, num_layers)

    def copies(self, model: dict[str, Any]) -> dict[str, str]:
        """Names in the other format that may repeat another tensor's values, and that tensor's."""
        theirs = {row.ours: row.theirs for row in self.table.rows}
        return {
            row.theirs: theirs[row.copy_of]
            for row in self.table.rows
            if row.copy_of is not None and row.unless is not None and model[row.unless]
        }
