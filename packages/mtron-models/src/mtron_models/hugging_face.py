"""Hugging Face's `config.json` in the words of our configurations. Imports no torch.

Field names are the same; what differs is how rotary positions are written (three ways so far),
values that stand for a default, and keys that say how a library is to run a model.
"""

from collections.abc import Mapping
from typing import Any

NO_EFFECT = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "cache_implementation",
        "dtype",
        "finetuning_task",
        "gradient_checkpointing",
        "head_dim_original",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    }
)
"""Keys that change nothing about what a model computes."""

_REFUSED = {
    "quantization_config": "weights of a quantized model cannot be read",
    "auto_map": "a model that is defined by code inside its checkpoint cannot be built",
}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")


def translated(
    values: Mapping[str, Any], only: Mapping[str, Any], optional: frozenset[str]
) -> dict[str, Any]:
    """Return what a `config.json` says, in our words; what is ours already stays as it is.

    Args:
        values: keys and values of the file.
        only: keys that are no fields of ours, with the one value that the model can honour.
        optional: fields of ours for which None is a value, rather than "the default".

    Raises:
        ValueError: naming what cannot be honoured and what contradicts itself, a line each.
    """
    problems = [
        f"{name}: {what}, got {values[name]!r}"
        for name, what in _REFUSED.items()
        if values.get(name)
    ]
    problems += [
        f"{name}: only {value!r} can be honoured, got {values[name]!r}"
        for name, value in only.items()
        if name in values and values[name] != value
    ]
    kept = {
        name: value
        for name, value in values.items()
        if name not in NO_EFFECT | _REFUSED.keys() | only.keys()
        and (value is not None or name in optional)
    }
    for name in _TOKEN_IDS:
        ids = kept.get(name)
        if isinstance(ids, list):
            kept[name] = ids[0] if ids else None
    try:
        kept |= _rope(kept)
    except ValueError as error:
        problems.append(str(error))
    kept.pop("rope_parameters", None)
    if problems:
        raise ValueError("\n".join(problems))
    return kept


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_theta`, `rope_scaling` and `partial_rotary_factor` from wherever they stand."""
    found: dict[str, Any] = {name: values[name] for name in _ROPE_KEYS if name in values}
    parameters = found.pop("rope_parameters", None)
    for source in (parameters, found.get("rope_scaling")):
        if source is None:
            continue
        if not isinstance(source, Mapping):
            raise ValueError(f"rope_parameters: must be a table, got {source!r}")
        rest = dict(source)
        kind = rest.pop("rope_type", rest.pop("type", "default"))
        rest.pop("type", None)
        for name in ("rope_theta", "partial_rotary_factor"):
            value = rest.pop(name, None)
            if value is not None and found.setdefault(name, value) != value:
                raise ValueError(
                    f"{name}: contradicts the one in rope_parameters, got {found[name]!r} "
                    f"and {value!r}; leave out one of them"
                )
        scaling = None if kind == "default" else {"rope_type": kind, **rest}
        if source is parameters and found.get("rope_scaling") not in (None, scaling, parameters):
            raise ValueError(
                f"rope_scaling: contradicts rope_parameters, got {found['rope_scaling']!r} and "
                f"{parameters!r}; leave out one of them"
            )
        found["rope_scaling"] = scaling
    for name in ("rope_theta", "partial_rotary_factor"):
        if isinstance(found.get(name), int) and not isinstance(found[name], bool):
            found[name] = float(found[name])
    scaling = found.get("rope_scaling")
    if isinstance(scaling, dict):
        found["rope_scaling"] = {
            name: float(value) if _is_whole(name, value) else value
            for name, value in scaling.items()
            if value is not None
        }
    return found


def _is_whole(name: str, value: Any) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and name != "original_max_position_embeddings"
