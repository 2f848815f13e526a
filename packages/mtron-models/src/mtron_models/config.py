"""What every model configuration is, and how a dictionary becomes one. Imports no torch."""

from abc import abstractmethod
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mtron_models.hugging_face import translated
from mtron_models.layout import Layout
from mtron_models.registry import config_class

_Model = TypeVar("_Model", bound=BaseModel)


class ModelConfig(BaseModel, frozen=True):
    """The configuration of one model family; field names are those of Hugging Face configs.

    Everything that can be known of a model without building it is known here, without torch.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    honoured: ClassVar[dict[str, Any]] = {}
    """Keys of Hugging Face's configuration that are no fields here, with the one value of each
    that the model can honour."""

    model_type: str
    """The family, a key of the registry."""

    @model_validator(mode="wrap")
    @classmethod
    def _report_causes_only(cls, values: Any, handler: Any) -> Any:
        """Leave out the fields whose defaults could not be derived from a field that is wrong."""
        try:
            return handler(values)
        except ValidationError as error:
            causes: list[Any] = [
                problem
                for problem in error.errors(include_url=False)
                if problem["type"] != "default_factory_not_called"
            ]
            raise ValidationError.from_exception_data(cls.__name__, causes) from None

    @classmethod
    def in_our_words(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `values` with fields of ours for what this family's `config.json` says otherwise.

        Args:
            values: keys and values of a `config.json`, or of our own.
        """
        return values

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the global shape of every parameter by name; a tied one appears once."""

    @abstractmethod
    def layout(self) -> Layout:
        """Return the layout table: patterns of parameter names to how they may be cut."""

    @abstractmethod
    def forward_flops_per_token(self, seq_len: int) -> int:
        """Return the operations of matrix products in a forward pass, per token.

        A multiplication and an addition are two operations; everything else is left out.

        Args:
            seq_len: tokens in the sequence, which set the cost of attention.
        """


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Return the configuration that `values` describes, of the family its `model_type` names.

    Args:
        values: field names to values: a parsed TOML table, `config.model_dump()`, or the content
            of a Hugging Face `config.json`, in which keys that change nothing about what is
            computed are passed over, and of several end tokens the first is kept.

    Raises:
        ValueError: every problem on a line of its own: an unknown family or key (with the nearest
            known one), a missing key, a value of the wrong type or out of range.
    """
    if "model_type" not in values:
        raise ValueError("model_type: missing; name the model family, for example 'llama'")
    cls = config_class(values["model_type"])
    optional = frozenset(
        name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)
    )
    values = translated(cls.in_our_words(values), cls.honoured, optional)
    return validated(cls, in_tuples(values))


def validated(cls: type[_Model], values: Mapping[str, Any]) -> _Model:
    """Return an object of `cls` with these fields.

    Raises:
        ValueError: every problem on a line of its own, with the remedy.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        lines = [_describe(problem, list(cls.model_fields)) for problem in error.errors()]
        raise ValueError("\n".join(lines)) from None


def in_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with tuples for lists: JSON and TOML have no tuples, and fields no lists."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


def _describe(problem: Any, known: list[str]) -> str:
    """Return one line for one of pydantic's problems, with the path, the value and the remedy."""
    path = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "value_error":  # ours: complete, and it may span several lines
            return str(problem["ctx"]["error"])
        case "missing":
            return f"{path}: missing; this field has no default"
        case "extra_forbidden":
            near = get_close_matches(path, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            return f"{path}: unknown field, got {problem['input']!r}; {remedy}"
        case _:
            what = problem["msg"][0].lower() + problem["msg"][1:]
            return f"{path}: {what}, got {problem['input']!r}"
