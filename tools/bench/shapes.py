"""The models that the benchmarks train."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-style decoder with an untied head, and of a batch of it."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    seq_len: int = 256
    batch_size: int = 8

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    def model_fields(self) -> dict[str, Any]:
        """Return the fields of the model's configuration, named as in Hugging Face configs."""
        fields = asdict(self)
        for name in ("name", "seq_len", "batch_size"):
            del fields[name]
        return fields | {
            "num_key_value_heads": self.num_attention_heads,
            "max_position_embeddings": self.seq_len,
            "tie_word_embeddings": False,
        }

    def __str__(self) -> str:
        return (
            f"hidden {self.hidden_size}, feed-forward {self.intermediate_size}, "
            f"{self.num_hidden_layers} layers, {self.num_attention_heads} heads, vocabulary "
            f"{self.vocab_size}, sequence {self.seq_len}, batch {self.batch_size}"
        )


SHAPES = {
    "7M": Shape("7M", 4096, 256, 704, 6, 4),
    "32M": Shape("32M", 8192, 512, 1536, 7, 8),
}
QUICK_SHAPES = {"tiny": Shape("tiny", 512, 64, 128, 2, 2, seq_len=64, batch_size=4)}
