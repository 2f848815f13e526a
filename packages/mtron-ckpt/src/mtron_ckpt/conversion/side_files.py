"""What lies beside the weights: config, generation config and tokenizer files.

Inside an mtron checkpoint these are assets. The tokenizer's keep their names; the two configs of
a Hugging Face source are kept as `hf_config.json` and `hf_generation_config.json`, so that what
our config cannot say comes back unchanged when the model is exported again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtron_ckpt.conversion.families import Family

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
HF_CONFIG = "hf_config.json"
HF_GENERATION_CONFIG = "hf_generation_config.json"

_TOKEN_FIELDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "pad_token_id",
}


def collect_assets(directory: Path, notes: list[str]) -> dict[str, bytes]:
    """The assets of a Hugging Face directory.

    Args:
        directory: the model directory.
        notes: gets a line if there is no tokenizer.
    """
    names = {name: name for name in TOKENIZER_FILES}
    names |= {"config.json": HF_CONFIG, "generation_config.json": HF_GENERATION_CONFIG}
    assets = {
        asset: (directory / file).read_bytes()
        for file, asset in names.items()
        if (directory / file).is_file()
    }
    if not any(name in assets for name in TOKENIZER_FILES):
        notes.append("the source has no tokenizer files")
    return assets


def write_configs(
    directory: Path,
    assets: Mapping[str, bytes],
    family: Family,
    model: dict[str, Any],
    dtype: str,
) -> None:
    """Writes `config.json` and `generation_config.json`.

    The files of the Hugging Face source that this model came from are written back as they were,
    as long as they still say the same as our config.

    Args:
        directory: where to write.
        assets: of the checkpoint.
        family: of the model.
        model: our config.
        dtype: of the weights, as `transformers` calls it.
    """
    config = _original_config(assets, family, model, dtype)
    original = config is not None
    if config is None:
        # transformers 4 reads torch_dtype, 5 reads dtype.
        config = _json(family.to_hf(model) | {"dtype": dtype, "torch_dtype": dtype})
    (directory / "config.json").write_bytes(config)
    if not family.architecture(model).generates:
        return
    generation = assets.get(HF_GENERATION_CONFIG) if original else None
    if generation is None:
        generation = _json(_generation_ids(assets, model))
    (directory / "generation_config.json").write_bytes(generation)


def _original_config(
    assets: Mapping[str, bytes], family: Family, model: dict[str, Any], dtype: str
) -> bytes | None:
    """The source's own `config.json` if it still describes this model, else None."""
    original = assets.get(HF_CONFIG)
    if original is None:
        return None
    config = _parse(HF_CONFIG, original)
    try:
        same = family.is_described_by(config, model)
    except ValueError:
        return None
    stated = config.get("dtype", config.get("torch_dtype"))
    return original if same and stated in (dtype, None) else None


def write_tokenizer(
    directory: Path, assets: Mapping[str, bytes], model: dict[str, Any], notes: list[str]
) -> None:
    """Writes the tokenizer files, with the class that `transformers` must use named.

    Without that class `AutoTokenizer` would take the one of the model's family, which replaces the
    normalizer and pre-tokenizer of `tokenizer.json` by its own.

    Args:
        directory: where to write.
        assets: of the checkpoint.
        model: our config; gives the special tokens where no `tokenizer_config.json` does.
        notes: gets a line if there is no tokenizer.
    """
    files = {name: assets[name] for name in TOKENIZER_FILES if name in assets}
    if not files:
        notes.append("the checkpoint has no tokenizer files")
    if "tokenizer.json" in files:
        config = _parse("tokenizer_config.json", files.get("tokenizer_config.json", b"{}"))
        if "tokenizer_config.json" not in files:
            config = _tokenizer_config(_parse("tokenizer.json", files["tokenizer.json"]), model)
        if "tokenizer_class" not in config:
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            files["tokenizer_config.json"] = _json(config)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def _generation_ids(assets: Mapping[str, bytes], model: dict[str, Any]) -> dict[str, int]:
    """Special token ids for generation; the tokenizer's where the model config has none."""
    tokenizer = _parse("tokenizer.json", assets.get("tokenizer.json", b"{}"))
    config = _parse("tokenizer_config.json", assets.get("tokenizer_config.json", b"{}"))
    ids = {token: index for index, token in _tokens(tokenizer).items()}
    found: dict[str, int] = {}
    for name, field in _TOKEN_FIELDS.items():
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if model.get(field) is not None:
            found[field] = model[field]
        elif isinstance(text, str) and text in ids:
            found[field] = ids[text]
    return found


def _tokenizer_config(tokenizer: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """A `tokenizer_config.json` for a tokenizer that came without one."""
    tokens = _tokens(tokenizer)
    config: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    if "max_position_embeddings" in model:
        config["model_max_length"] = model["max_position_embeddings"]
    for field, name in _TOKEN_FIELDS.items():
        if model.get(name) in tokens:
            config[field] = tokens[model[name]]
    return config


def _tokens(tokenizer: dict[str, Any]) -> dict[int, str]:
    """The tokens of a `tokenizer.json` by id."""
    try:
        vocabulary = tokenizer.get("model", {}).get("vocab", {})
        if isinstance(vocabulary, list):  # Unigram: a list of [token, score]
            vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
        tokens = {index: token for token, index in vocabulary.items()}
        return tokens | {
            entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens", [])
        }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"assets/tokenizer.json: is no tokenizer of the tokenizers library, got {error!r}"
        ) from error


def _parse(name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"assets/{name}: not valid JSON, got {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"assets/{name}: must hold a JSON object, got {type(value).__name__}")
    return value


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
