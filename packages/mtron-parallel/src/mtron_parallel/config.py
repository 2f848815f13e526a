"""How a model is spread over processes: plain data, checked as a whole. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mtron_parallel.cuts import Rule, obstacles, pattern_of


class SupportsLayout(Protocol):
    """What `ParallelConfig.check` needs to know of a model; its configuration can say it."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the global shape of every parameter by name; a tied one appears once."""
        ...

    def layout(self) -> Mapping[str, Rule]:
        """Return patterns of parameter names to how they may be cut; the first match counts."""
        ...


def _fills_or_counts(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("must be at least 1, or -1 to fill the world")
    return value


def _is_stage(value: Any) -> Any:
    """Refuse also True and 1.0, which pydantic takes for the literal 1 even where it is strict."""
    if type(value) is not int or value not in (0, 1, 2):
        raise ValueError("must be 0, 1 or 2")
    return value


class ParallelConfig(BaseModel):
    """Degrees of parallelism, and how gradients and weights are communicated."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    tp: int = Field(default=1, ge=1)
    """Ranks of tensor parallelism: each holds a part of every large parameter."""
    sequence_parallel: bool = False
    """Whether to split the residual stream along the sequence over the tp ranks; without effect
    where tp = 1."""
    dp: Annotated[int, AfterValidator(_fills_or_counts)] = -1
    """Ranks of data parallelism: each takes a part of the batch; -1 fills the world."""
    zero: Annotated[Literal[0, 1, 2], BeforeValidator(_is_stage)] = 0
    """What is sharded over the dp ranks: 0 nothing, 1 optimizer state, 2 also gradients; without
    effect where dp = 1."""
    bucket_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """Gradient bytes that are communicated at once."""
    overlap: bool = True
    """Whether to communicate gradients during the backward and weights during the next forward."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """Longest wait of a collective for the other ranks; then the job ends with an error."""

    def resolve(self, world_size: int) -> "ParallelConfig":
        """Return this configuration with `dp` filled in for a job of `world_size` ranks.

        Raises:
            ValueError: the degrees do not make `world_size`; a line for each violation.
        """
        problems = self.check(world_size)
        if problems:
            raise ValueError("\n".join(problems))
        return self.model_copy(update={"dp": world_size // self.tp})

    def check(self, world_size: int, model: SupportsLayout | None = None) -> list[str]:
        """Return every violation with its remedy, each as `parallel.<field>: <what>; <remedy>`.

        Needs no process group and no torch. A remedy names values that are legal for all
        parameters of `model` together and for the number of ranks.

        Args:
            world_size: ranks of the job.
            model: what is to be spread; without it only the sizes are checked.

        Raises:
            ValueError: `world_size` is not positive.
        """
        if world_size < 1:
            raise ValueError(f"world_size: must be at least 1, got {world_size}")
        problems, cuts = ([], []) if model is None else _distinct_cuts(model)
        fitting = [
            tp
            for tp in range(1, world_size + 1)
            if world_size % tp == 0 and not _obstacles(cuts, tp)
        ]
        problems += [
            f"parallel.tp: {self.tp} {why} {what}; {self._tp_remedy(world_size, fitting)}"
            for what, why in _obstacles(cuts, self.tp)
        ]
        is_legal = not _obstacles(cuts, self.tp)
        return problems + self._size_problems(world_size, fitting, is_legal)

    def _tp_remedy(self, world_size: int, fitting: Sequence[int]) -> str:
        """Name the values of tp that would do, with another dp only where there must be one."""
        legal = [tp for tp in fitting if self.dp in (-1, world_size // tp)]
        return f"use {_join(legal)}" if legal else f"use {_join(fitting)} with parallel.dp = -1"

    def _size_problems(
        self, world_size: int, fitting: Sequence[int], tp_is_legal: bool
    ) -> list[str]:
        """Say whether dp * tp is `world_size`.

        Args:
            world_size: ranks of the job.
            fitting: values of tp that divide it and that the model allows.
            tp_is_legal: whether the model allows this tp.
        """
        tp, dp = self.tp, self.dp
        if dp == -1:
            if world_size % tp == 0:
                return []
            remedy = self._tp_remedy(world_size, fitting)
            if tp_is_legal:
                nearest = [n for n in (world_size // tp * tp, (world_size // tp + 1) * tp) if n]
                remedy += f", or start {_join(nearest)} ranks (--nproc)"
            why = "is more than" if tp > world_size else "does not divide"
            return [f"parallel.tp: {tp} {why} the world size {world_size}; {remedy}"]
        if dp * tp == world_size:
            return []
        remedies = []
        if tp in fitting:
            remedies.append(f"parallel.dp = {world_size // tp} or -1")
        remedies += [f"parallel.tp = {n}" for n in fitting if n * dp == world_size]
        in_this_world = bool(remedies)
        if tp_is_legal:
            remedies.append(f"{dp * tp} ranks (--nproc)")
        if not in_this_world:
            remedies.append(f"parallel.dp = -1 with parallel.tp = {_join(fitting)}")
        return [
            f"parallel.dp: {dp} times parallel.tp = {tp} makes {dp * tp} ranks, but the world "
            f"size is {world_size}; use {', or '.join(remedies)}"
        ]


_ParameterCut = tuple[tuple[int, ...], Rule, str]
"""Shape, rule and pattern of parameters that are cut alike."""


def _distinct_cuts(model: SupportsLayout) -> tuple[list[str], list[_ParameterCut]]:
    """Return what is wrong with the layout table, and what it makes of the parameters."""
    layout = model.layout()
    problems: dict[str, None] = {}
    cuts: dict[tuple[str, tuple[int, ...]], _ParameterCut] = {}
    for name, shape in model.parameter_shapes().items():
        try:
            pattern = pattern_of(name, layout)
        except ValueError as error:
            problems[str(error)] = None
            continue
        if (pattern, shape) in cuts:
            continue
        try:
            list(obstacles(shape, layout[pattern], 1, pattern))
        except ValueError as error:
            problems[f'layout."{pattern}".{error}'] = None
            continue
        cuts[pattern, shape] = (shape, layout[pattern], pattern)
    return list(problems), list(cuts.values())


def _obstacles(cuts: Sequence[_ParameterCut], size: int) -> list[tuple[str, str]]:
    """Return what keeps `size` ranks from cutting, each cause once."""
    found = [obstacles(shape, rule, size, pattern) for shape, rule, pattern in cuts]
    return list(dict.fromkeys(obstacle for group in found for obstacle in group))


def _join(values: Sequence[int]) -> str:
    if len(values) == 1:
        return str(values[0])
    return f"{', '.join(map(str, values[:-1]))} or {values[-1]}"
