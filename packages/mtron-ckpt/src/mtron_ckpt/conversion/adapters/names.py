"""Which tensor of an adapter is which in PEFT's files, by the name table of the family."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mtron_ckpt.conversion.families import Family
from mtron_ckpt.conversion.names import Config
from mtron_ckpt.conversion.pieces import Shape, TensorMap

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model."""
HALVES = (".lora_A.weight", ".lora_B.weight")
_ANY_NUMBER = 10**9
"""A bound of the number of tensors of a model that was built."""


@dataclass(frozen=True)
class AdapterNames:
    """The names of the adapters of one model.

    Attributes:
        tensors: of the model itself, in both formats.
    """

    tensors: TensorMap

    @classmethod
    def of(cls, family: Family, model: Config) -> "AdapterNames":
        """The names for a model of a family.

        Args:
            family: of the model.
            model: our config.
        """
        return cls(family.tensors(model, _ANY_NUMBER))

    def theirs(self, ours: str) -> str:
        """Their name, with the prefix, of one of our tensors.

        Raises:
            ValueError: naming a tensor that cannot be expressed by itself.
        """
        module, half = split_half(ours)
        weight = f"{module}.weight" if half else ours
        if half and module.partition(".")[0] == "embed":
            raise ValueError(f"{ours}: only linear modules can have adapters, and {module} is none")
        if weight not in self.tensors.ours:
            raise ValueError(f"{ours}: the model has no matrix {weight} of its own")
        fused = self.tensors.theirs_of(weight)
        if len(fused) > 1 or len(self.tensors.ours_of(fused[0])) > 1:
            parts = ", ".join(self.tensors.ours_of(fused[0])[:3])
            raise ValueError(
                f"{ours}: cannot be expressed, because {weight} is not a matrix of its own there: "
                f"{fused[0]} holds {parts}; train adapters of other modules"
            )
        name = f"{fused[0].removesuffix('.weight')}{half}" if half else fused[0]
        return f"{PREFIX}{name}"

    def shape(self, ours: str, rank: int) -> Shape:
        """The shape of one of our tensors; that of an adapter is the same in both formats.

        Args:
            ours: name of a tensor for which `theirs` gives a name.
            rank: of the adapters.
        """
        module, half = split_half(ours)
        if not half:
            return self.tensors.ours[ours]
        rows, columns = self.tensors.ours[f"{module}.weight"]
        return (rank, columns) if half == HALVES[0] else (rows, rank)

    def by_theirs(self) -> dict[str, str]:
        """Our names by theirs, of all tensors that can be expressed."""
        names: dict[str, str] = {}
        for weight, shape in self.tensors.ours.items():
            is_matrix = weight.endswith(".weight") and len(shape) == 2
            halves = HALVES if is_matrix else ()
            for ours in (weight, *(weight.removesuffix(".weight") + half for half in halves)):
                try:
                    names[self.theirs(ours)] = ours
                except ValueError:
                    continue
        return names


def split_half(name: str) -> tuple[str, str]:
    """The linear module of a tensor of an adapter and which half it is; no half for any other."""
    for half in HALVES:
        if name.endswith(half):
            return name.removesuffix(half), half
    return name, ""


def module_of(parameter: str) -> str:
    """The module that has a parameter."""
    return parameter.rpartition(".")[0]


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern fits a module, one around it, or the last parts of one of these."""
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(
        fnmatchcase(outer, pattern) or fnmatchcase(outer, f"*.{pattern}")
        for outer in around
        for pattern in patterns
    )


def shortest(chosen: Collection[str], modules: Collection[str]) -> list[str]:
    """Names that mean exactly the `chosen` of all `modules`: last parts where these suffice."""
    last = {name.rpartition(".")[2] for name in chosen}
    short = {
        part
        for part in last
        if all(name in chosen for name in modules if name.rpartition(".")[2] == part)
    }
    return sorted(short | {name for name in chosen if name.rpartition(".")[2] not in short})
