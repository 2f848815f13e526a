"""The model families that the converter knows; a new one is a module here and a line below."""

from typing import Any

from mtron_ckpt.conversion.families.base import Family
from mtron_ckpt.conversion.families.bert import BERT
from mtron_ckpt.conversion.families.deepseek_v3 import DEEPSEEK_V3
from mtron_ckpt.conversion.families.gemma import GEMMA2, GEMMA3_TEXT
from mtron_ckpt.conversion.families.gpt2 import GPT2
from mtron_ckpt.conversion.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from mtron_ckpt.conversion.families.mixtral import MIXTRAL
from mtron_ckpt.conversion.families.qwen3_moe import QWEN3_MOE
from mtron_ckpt.conversion.families.t5 import T5

__all__ = ["FAMILIES", "Family", "family_of_hf", "family_of_mtron"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BERT,
        DEEPSEEK_V3,
        GEMMA2,
        GEMMA3_TEXT,
        GPT2,
        LLAMA,
        MISTRAL,
        MIXTRAL,
        QWEN2,
        QWEN3,
        QWEN3_MOE,
        T5,
    )
}


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
    family = FAMILIES.get(str(hf.get("model_type")))
    if family is None:
        known = ", ".join(one.name for family in FAMILIES.values() for one in family.architectures)
        raise ValueError(
            f"{source}: model_type: unknown architecture, got {hf.get('model_type')!r} "
            f"({', '.join(map(str, architectures)) or 'no architectures'}); known: {known}"
        )
    try:
        family.architecture_of_hf(hf)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return family
