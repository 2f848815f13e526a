"""The model families that the converter knows; a new one is a module here and a line below."""

from typing import Any

from mtron_ckpt.conversion.families.base import Family
from mtron_ckpt.conversion.families.llama import LLAMA

__all__ = ["FAMILIES", "Family", "family_of_hf", "family_of_mtron"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA,)}


def family_of_mtron(source: str, model: dict[str, Any]) -> Family:
    """The family of our model config `model`.

    Raises:
        ValueError: if the converter has no name table for it.
    """
    model_type = str(model.get("model_type"))
    if model_type not in FAMILIES:
        raise ValueError(
            f"{source}: config model.model_type: no name table for this family, got "
            f"{model_type!r}; families that can be converted: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of_hf(source: str, hf: dict[str, Any]) -> Family:
    """The family of a Hugging Face config.

    Raises:
        ValueError: if `model_type` or `architectures` is not one that the converter knows.
    """
    architectures = hf.get("architectures") or []
    known = ", ".join(family.architecture for family in FAMILIES.values())
    family = FAMILIES.get(str(hf.get("model_type")))
    if family is None:
        raise ValueError(
            f"{source}: model_type: unknown architecture, got {hf.get('model_type')!r} "
            f"({', '.join(map(str, architectures)) or 'no architectures'}); known: {known}"
        )
    if architectures and architectures != [family.architecture]:
        raise ValueError(
            f"{source}: architectures: only {family.architecture} is known for model_type "
            f"{family.model_type}, got {architectures}; known: {known}"
        )
    return family
