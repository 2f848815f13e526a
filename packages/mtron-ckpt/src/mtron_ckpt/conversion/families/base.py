"""What the converter must know about a model family."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtron_ckpt.conversion.config_table import ConfigTable
from mtron_ckpt.conversion.names import Config, LayerSet, NameTable
from mtron_ckpt.conversion.pieces import TensorMap


@dataclass(frozen=True)
class Architecture:
    """One class of `transformers` that a family can be.

    Attributes:
        name: of the class, as in `architectures` of config.json.
        table: names and shapes of its tensors.
        chosen_by: fields of our config with the values that mean this architecture; they are not
            in their config.
        generates: whether it has a `generation_config.json`.
    """

    name: str
    table: NameTable
    chosen_by: Mapping[str, Any] = field(default_factory=dict)
    generates: bool = True


def _as_it_says(model: Config, names: Collection[str], notes: list[str]) -> Config:
    """A source holds what its config says."""
    del names, notes
    return model


_ANY_NUMBER = 10**9
"""A bound of the number of tensors for a config that is known to be true."""


def _all_layers(model: Config) -> range:
    return range(model["num_hidden_layers"])


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family.

    Attributes:
        model_type: `model_type` in both formats.
        config: translation of its config.
        architectures: what it can be; the first where config.json does not say.
        layer_sets: the layers that `layers` of a row may name, beside "all", which has the
            indices below `num_hidden_layers`.
        flags: what `when` and `unless` of a row may name beside the fields of our config.
        layer_counts: fields of our config that say how many layers there are; they are compared
            with the number of tensors, so that a config that lies costs nothing.
        held: our config for what a source of the other format holds, where its config.json may
            promise more: `held(model, names of its tensors, notes)`.
    """

    model_type: str
    config: ConfigTable
    architectures: tuple[Architecture, ...]
    layer_sets: Mapping[str, LayerSet] = field(default_factory=dict)
    flags: Mapping[str, Callable[[Config], bool]] = field(default_factory=dict)
    layer_counts: tuple[str, ...] = ("num_hidden_layers",)
    held: Callable[[Config, Collection[str], list[str]], Config] = _as_it_says

    def from_hf(self, hf: Mapping[str, Any], notes: list[str]) -> Config:
        """Our model config for a Hugging Face `config.json`.

        Args:
            hf: its content; the architecture must be one of the family's.
            notes: gets a line for each key that is ignored.

        Raises:
            ValueError: naming a key that is missing, malformed or cannot be honoured.
        """
        chosen = self.architecture_of_hf(hf).chosen_by
        return {"model_type": self.model_type, **chosen, **self.config.from_hf(hf, notes)}

    def is_described_by(self, hf: Mapping[str, Any], model: Config) -> bool:
        """Whether a `config.json` means our config, beside the weights of such a model.

        Args:
            hf: its content.
            model: our config, of a model that exists.

        Raises:
            ValueError: as `from_hf`.
        """
        names = self.tensors(model, _ANY_NUMBER).theirs
        return self.held(self.from_hf(hf, []), names, []) == model

    def to_hf(self, model: Config) -> dict[str, Any]:
        """The Hugging Face `config.json`, without the dtype, for our model config.

        Raises:
            ValueError: naming a field of ours that their format cannot express.
        """
        architecture = self.architecture(model)
        beside = {"model_type", *architecture.chosen_by}
        hf = self.config.to_hf({n: value for n, value in model.items() if n not in beside})
        return hf | {"architectures": [architecture.name], "model_type": self.model_type}

    def architecture(self, model: Config) -> Architecture:
        """The architecture of a model of ours.

        Raises:
            ValueError: if `transformers` has no class for it.
        """
        for architecture in self.architectures:
            chosen_by = architecture.chosen_by
            if all(model.get(name) == value for name, value in chosen_by.items()):
                return architecture
        names = {name for architecture in self.architectures for name in architecture.chosen_by}
        got = ", ".join(f"{name} = {model.get(name)!r}" for name in sorted(names))
        known = ", ".join(architecture.name for architecture in self.architectures)
        raise ValueError(f"model: has none of the architectures {known}, got {got}")

    def architecture_of_hf(self, hf: Mapping[str, Any]) -> Architecture:
        """The architecture that a `config.json` names; the first where it names none.

        Raises:
            ValueError: if it is none of the family's.
        """
        names = hf.get("architectures") or [self.architectures[0].name]
        for architecture in self.architectures:
            if names == [architecture.name]:
                return architecture
        known = " or ".join(architecture.name for architecture in self.architectures)
        raise ValueError(
            f"architectures: only {known} is known for model_type {self.model_type}, got {names}"
        )

    def tensors(self, model: Config, num_found: int, most_pieces: int | None = None) -> TensorMap:
        """Every tensor of a model.

        Args:
            model: our config.
            num_found: tensors in the source; bounds the work for a config that lies.
            most_pieces: how many pieces they can have; default: as many as there are tensors.

        Raises:
            ValueError: if there are more layers than tensors, or far more tensors.
        """
        for name in self.layer_counts:
            if model[name] > num_found:
                raise ValueError(
                    f"{name}: there are only {num_found} tensors, got {model[name]} layers; "
                    "check that config and weights belong together"
                )
        most = 4 * (num_found if most_pieces is None else most_pieces) + 1000
        table = self.architecture(model).table
        return table.expand(self.config.sizes(model), *self._questions(model), most)

    def copies(self, model: Config) -> dict[str, str]:
        """Names in the other format that may repeat another tensor's values, and that tensor's."""
        return self.architecture(model).table.copied(*self._questions(model))

    def _questions(
        self, model: Config
    ) -> tuple[Callable[[str], bool], Callable[[str], dict[int, int]]]:
        """Whether a flag holds for this model, and which layers a set has."""

        def holds(name: str) -> bool:
            return bool(self.flags[name](model) if name in self.flags else model[name])

        def layers(name: str) -> dict[int, int]:
            chosen = _all_layers if name == "all" else self.layer_sets[name]
            pairs = [(one, one) if isinstance(one, int) else one for one in chosen(model)]
            return dict(pairs)

        return holds, layers
