"""A checkpoint of an untrained model with its tokenizer, for the packages that read checkpoints."""

from pathlib import Path

from mtron_ckpt import LocalArray, Metadata, save
from mtron_ckpt.torch_io import from_torch
from mtron_data import train_tokenizer
from mtron_models import LlamaConfig, build, initialize

TEXT = "the quick brown fox jumps over the lazy dog, and packs the box with five dozen jugs.\n" * 20


def write_checkpoint(root: str) -> None:
    """Write one committed step under `root`, and the text the tokenizer knows to text.txt."""
    Path("text.txt").write_text(TEXT)
    train_tokenizer(["text.txt"], vocab_size=300, output="tokenizer")
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = build(config, device="cpu")
    initialize(model, seed=1)
    arrays = {
        f"param/{name}": LocalArray.whole(from_torch(p.detach()))
        for name, p in model.named_parameters()
    }
    assets = {path.name: path.read_bytes() for path in Path("tokenizer").iterdir()}
    stored = {"model": config.model_dump(mode="json")}
    save(root, arrays, Metadata(1, stored, state={}, layout={}, assets=assets)).wait()
