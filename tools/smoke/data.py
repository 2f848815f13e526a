"""mtron-data alone, without torch: train a tokenizer, prepare text, load batches, resume."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from mtron_data import (
    GPTDataset,
    Loader,
    TokenDataset,
    load_tokenizer,
    prepare,
    train_tokenizer,
)

assert importlib.util.find_spec("torch") is None


def main() -> None:
    """From two sentences to batches, and the same batches again after a resume."""
    texts = ["the quick brown fox jumps over the lazy dog. " * 20, "pack my box with jugs. " * 20]
    Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer(["text.jsonl"], vocab_size=300, output="tokenizer")
    tokenizer = load_tokenizer("tokenizer")
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]

    prepare(["text.jsonl"], tokenizer="tokenizer", output="corpus", workers=2)
    tokens = np.concatenate([TokenDataset("corpus")[i] for i in range(2)])
    assert set(tokenizer.encode(texts[1])) <= set(tokens.tolist())

    dataset = GPTDataset("corpus", seq_len=16, seed=1)
    loader = Loader(dataset, micro_batch_size=2)
    next(iter(loader))
    state = json.loads(json.dumps(loader.state()))
    expected = next(iter(loader))
    resumed = next(iter(Loader(dataset, micro_batch_size=2, state=state)))
    assert expected["tokens"].shape == (2, 16)
    assert np.array_equal(expected["tokens"][:, 1:], expected["labels"][:, :-1])
    assert np.array_equal(expected["tokens"], resumed["tokens"])


if __name__ == "__main__":
    main()
