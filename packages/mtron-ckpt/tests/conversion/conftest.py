"""Small models in both formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import mtron_ckpt
from mtron_ckpt import LocalArray, Metadata
from mtron_ckpt.conversion.families import FAMILIES

Weights = dict[str, np.ndarray]

MODEL = {
    "model_type": "llama",
    "vocab_size": 281,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
TEXT = "def add(first, second):\n    return first + second  # ünïcode → ok\n"


@pytest.fixture
def model() -> dict[str, Any]:
    """The config of a small Llama."""
    return dict(MODEL)


@pytest.fixture(scope="session")
def text() -> str:
    """Text that the tokenizer knows, with characters beyond ASCII."""
    return TEXT


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    """A byte-level BPE tokenizer whose token 0 ends a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer.to_str().encode()


def _make_weights(model: dict[str, Any], dtype: Any = np.float32) -> Weights:
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(len(shape) == 1, 0.1, shape).astype(dtype)
        for name, shape in FAMILIES[model["model_type"]].tensors(model, 100).ours.items()
    }


@pytest.fixture(scope="session")
def make_weights() -> Callable[..., Weights]:
    """Random weights of a model by our names."""
    return _make_weights


@pytest.fixture
def save_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes an mtron checkpoint of weights and, with a state, of optimizer arrays."""

    def save(model: dict[str, Any], weights: Weights | None = None, **metadata: Any) -> Path:
        weights = _make_weights(model) if weights is None else weights
        arrays = {f"param/{name}": LocalArray.whole(array) for name, array in weights.items()}
        if metadata.get("state"):
            zeros = {name: np.zeros(array.shape, np.float32) for name, array in weights.items()}
            arrays |= {f"exp_avg/{name}": LocalArray.whole(array) for name, array in zeros.items()}
        config = {"model": model} | metadata.pop("config", {})
        root = tmp_path / metadata.pop("name", "root")
        mtron_ckpt.save(root, arrays, Metadata(step=20, config=config, **metadata)).wait()
        return root

    return save


@pytest.fixture
def make_hf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Hugging Face directory by hand; `change` alters its tensors."""

    def make(model: dict[str, Any], change: Callable[[Weights], Weights] | None = None) -> Path:
        directory = tmp_path / "hf"
        directory.mkdir()
        family = FAMILIES[model["model_type"]]
        (directory / "config.json").write_text(json.dumps(family.to_hf(model)))
        weights = _make_weights(model)
        table = family.tensors(model, 100)
        dtype = np.dtype(np.float32)
        tensors = {
            name: np.ascontiguousarray(table.read_theirs(name, dtype, weights.__getitem__))
            for name in table.theirs
        }
        tensors = tensors if change is None else change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return make


@pytest.fixture(scope="session")
def same() -> Callable[[np.ndarray, np.ndarray], bool]:
    """Whether two arrays agree in type, shape and every bit."""

    def compare(left: np.ndarray, right: np.ndarray) -> bool:
        return (left.dtype, left.shape) == (right.dtype, right.shape) and (
            left.tobytes() == right.tobytes()
        )

    return compare
