"""PEFT's `adapter_config.json` and the table `adapter` of our configuration."""

import math
from typing import Any

_SAME = ("r", "lora_alpha", "lora_dropout", "use_rslora", "task_type", "base_model_name_or_path")
"""Fields that are the same in both."""
_DEFAULTS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "use_rslora": False,
    "task_type": None,
    "base_model_name_or_path": None,
}
"""What PEFT takes where the file says nothing."""
_CHOICES = frozenset(
    {
        "exclude_modules",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "target_modules",
    }
)
"""Fields that choose modules: the tensors say which ones were chosen."""
_REFUSED = {
    "alora_invocation_tokens": "adapters that begin at a token",
    "alpha_pattern": "alphas that differ between modules",
    "arrow_config": "routing between adapters",
    "kasa_config": "KaSA",
    "layer_replication": "layers that are repeated",
    "lora_bias": "biases of the adapters",
    "megatron_config": "modules of Megatron",
    "monteclora_config": "MonteCLoRA",
    "rank_pattern": "ranks that differ between modules",
    "target_parameters": "adapters of parameters outside linear modules",
    "trainable_token_indices": "single trained tokens",
    "use_bdlora": "block-diagonal adapters",
    "use_dora": "weights split into magnitude and direction (DoRA)",
    "use_qalora": "adapters of grouped inputs (QA-LoRA)",
    "velora_config": "VeLoRA",
}
_PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""How adapters can be initialized while the model stays what it was."""
_NO_EFFECT = frozenset(
    {
        "auto_mapping",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "loftq_config",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)


def from_peft(values: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Our table, without the chosen modules, for the content of `adapter_config.json`.

    Args:
        values: the file's keys.
        notes: gets a line for each key that is ignored.

    Raises:
        ValueError: naming a key that is malformed or cannot be honoured.
    """
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"peft_type: only adapters of LoRA can be converted, got {kind!r}")
    for name, what in _REFUSED.items():
        if values.get(name):
            raise ValueError(f"{name}: {what} cannot be converted, got {values[name]!r}")
    if values.get("bias", "none") != "none":
        raise ValueError(f"bias: only 'none' can be honoured, got {values['bias']!r}")
    start = values.get("init_lora_weights")
    if start not in _PLAIN_INITS:
        raise ValueError(
            f"init_lora_weights: the weights of the model were changed too, got {start!r}; save "
            "the adapter with path_initial_model_for_weight_conversion"
        )
    known = {*_SAME, *_CHOICES, *_REFUSED, *_NO_EFFECT}
    notes.extend(
        f"adapter_config.json: {name} has no effect" for name in sorted(set(values) - known)
    )
    adapter = {name: values.get(name, _DEFAULTS[name]) for name in _SAME}
    _check(adapter)
    return adapter


def to_peft(
    adapter: dict[str, Any], targets: list[str], saved: list[str], transposed: bool
) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Args:
        adapter: our table.
        targets: their names of the linear modules with an adapter.
        saved: their names of the modules that were trained whole.
        transposed: whether these linear modules keep their matrices transposed.

    Raises:
        ValueError: naming a field that is malformed or that PEFT cannot express.
    """
    same = {name: adapter.get(name, _DEFAULTS[name]) for name in _SAME}
    _check(same)
    if adapter.get("bias", "none") != "none":
        raise ValueError(f"bias: only 'none' can be expressed, got {adapter['bias']!r}")
    alpha = same["lora_alpha"]
    return dict(
        sorted(
            {
                **same,
                "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
                "bias": "none",
                "fan_in_fan_out": transposed,
                "inference_mode": True,
                "modules_to_save": saved or None,
                "peft_type": "LORA",
                "target_modules": targets,
            }.items()
        )
    )


def _check(adapter: dict[str, Any]) -> None:
    """Refuse values of the wrong type or out of range."""
    rank, alpha, dropout = (adapter[name] for name in ("r", "lora_alpha", "lora_dropout"))
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"r: must be a positive integer, got {rank!r}")
    if not _is_number(alpha) or not 0 < alpha < math.inf:
        raise ValueError(f"lora_alpha: must be a positive finite number, got {alpha!r}")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"lora_dropout: must be in [0, 1), got {dropout!r}")
    if not isinstance(adapter["use_rslora"], bool):
        raise ValueError(f"use_rslora: must be true or false, got {adapter['use_rslora']!r}")
    for name in ("task_type", "base_model_name_or_path"):
        if not isinstance(adapter[name], str | None):
            raise ValueError(f"{name}: must be text or null, got {adapter[name]!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
