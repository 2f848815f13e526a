"""Models that need no checkpoint, and files to score."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest


class BytesTokenizer:
    """One token per byte; token 0 ends a document."""

    eos_id: int | None = 0

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + 1 for byte in text.encode()] for text in texts]


class UniformScorer:
    """Gives every token the same probability."""

    vocab_size = 257

    def __init__(self, max_context: int = 16) -> None:
        self.tokenizer = BytesTokenizer()
        self.max_context = max_context
        self.seen: list[list[int]] = []

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.seen.extend(list(ids) for ids in token_ids)
        return [np.full(len(ids) - 1, -math.log(self.vocab_size)) for ids in token_ids]


class PrefixScorer(UniformScorer):
    """Makes a token's score tell its value and how many tokens were seen before it."""

    @staticmethod
    def value(token: int, num_before: int) -> float:
        return -(token + num_before / 1000)

    def score(self, token_ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.seen.extend(list(ids) for ids in token_ids)
        return [
            np.array([self.value(ids[i], i) for i in range(1, len(ids))], dtype=np.float64)
            for ids in token_ids
        ]


@pytest.fixture
def uniform_scorer() -> UniformScorer:
    return UniformScorer()


@pytest.fixture
def prefix_scorer() -> PrefixScorer:
    return PrefixScorer()


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(*records: object, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


class Tolerances:
    """How far results may be from their oracle; only ever tightened."""

    fp32_log_likelihood = 1e-5
    """Relative, on the sum over a document, against another implementation in fp32."""


@pytest.fixture(scope="session")
def tolerances() -> Tolerances:
    return Tolerances()


TEXT = "the quick brown fox jumps over the lazy dog and runs through a field of tall grass"


def _make_text(seed: int, num_words: int) -> str:
    """Sentences of known words with a few other characters."""
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(TEXT.split(), num_words)) + ".\n\tÄ → ü?\n"


@pytest.fixture(scope="session")
def make_text() -> Callable[[int, int], str]:
    return _make_text


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_make_text(seed, 50) for seed in range(20)], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    )


def _write_weights(directory: Path) -> None:
    from safetensors.numpy import save_file

    layer = {
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
    }
    shapes = {"model.embed_tokens": (300, 32), "lm_head": (300, 32), "model.norm": (32,)}
    for index in range(CONFIG["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(7)
    tensors = {
        f"{name}.weight": rng.normal(len(shape) == 1, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def hf_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a tokenizer, as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("hf")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    _write_tokenizer(directory)
    _write_weights(directory)
    return directory


@pytest.fixture(scope="session")
def checkpoint(hf_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a root of mtron checkpoints."""
    from mtron_ckpt import convert

    root = tmp_path_factory.mktemp("mtron") / "root"
    convert(hf_model, root, to="mtron")
    return root
