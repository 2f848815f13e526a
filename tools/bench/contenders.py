"""What the benchmark compares: each function builds one contender and returns its training step.

A step takes the next batch, runs forward and backward, clips the gradient norm to 1, updates with
AdamW and returns the loss. All train the same shape in float32.
"""

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from plain_decoder import PlainDecoder
from shapes import Shape
from torch import Tensor, nn

Step = Callable[[], float]

LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP_NORM = 1e-3, (0.9, 0.95), 0.1, 1.0


def random_batches(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens and labels for ever: eight batches, again and again."""
    generator = torch.Generator().manual_seed(0)
    size = (8, shape.batch_size, shape.seq_len + 1)
    tokens = torch.randint(0, shape.vocab_size, size, generator=generator)
    while True:
        for batch in tokens:
            yield batch[:, :-1].contiguous(), batch[:, 1:].contiguous()


def loop(model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], shape: Shape) -> Step:
    """Return the step of the plain loop that everybody writes."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    batches = random_batches(shape)

    def step() -> float:
        loss = loss_of(*next(batches))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def plain(shape: Shape) -> Step:
    model = PlainDecoder(shape)
    return loop(model, model, shape)


def plain_compiled(shape: Shape) -> Step:
    model = PlainDecoder(shape)
    return loop(model, torch.compile(model), shape)


def transformers_eager(shape: Shape) -> Step:
    model = _transformers_model(shape)
    return loop(model, _transformers_loss(model), shape)


def transformers_compiled(shape: Shape) -> Step:
    model = _transformers_model(shape)
    return loop(model, torch.compile(_transformers_loss(model)), shape)


def _transformers_model(shape: Shape) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**shape.model_fields(), use_cache=False)).train()


def _transformers_loss(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def loss_of(tokens: Tensor, labels: Tensor) -> Tensor:
        return model(input_ids=tokens, labels=labels, shift_labels=labels).loss

    return loss_of


def mtron_bare(shape: Shape, **kernels: Any) -> Step:
    """Train mtron's model, as fast as `accelerate` makes it, in the plain loop."""
    from mtron_models import LlamaConfig, build, initialize
    from mtron_optim import KernelConfig, accelerate

    model: Any = build(LlamaConfig(**shape.model_fields())).to_empty(device="cpu")
    initialize(model, seed=0)
    accelerate(model, KernelConfig(**kernels))
    weights = torch.full((shape.batch_size, shape.seq_len), 1 / shape.tokens_per_step)
    from mtron_models import Context

    context = Context()
    return loop(model, lambda x, y: model.train_loss(x, y, weights, context), shape)


def mtron_bare_fastest(shape: Shape) -> Step:
    return mtron_bare(shape, compile=True)


def mtron_bare_eager(shape: Shape) -> Step:
    return mtron_bare(shape)


def mtron_bare_torch_products(shape: Shape) -> Step:
    return mtron_bare(shape, compile=True, matmul="torch", keep_memory=False)


def mtron_loop(shape: Shape) -> Step:
    """Train by mtron-train's own step, from a prepared dataset, with the fastest kernels."""
    from mtron_train import assemble, config_from_mapping, train_step

    temporary = tempfile.TemporaryDirectory(prefix="mtron-bench-")
    folder = Path(temporary.name)
    config = config_from_mapping(
        {
            "run": {"directory": str(folder / "run"), "steps": 10**6, "device": "cpu"},
            "model": {"model_type": "llama", **shape.model_fields()},
            "data": {
                "train": _dataset(folder, shape),
                "seq_len": shape.seq_len,
                "global_batch_size": shape.batch_size,
            },
            "optim": {
                "lr": LEARNING_RATE,
                "betas": list(BETAS),
                "weight_decay": WEIGHT_DECAY,
                "clip_norm": CLIP_NORM,
            },
            "schedule": {"kind": "constant"},
            "kernels": {"compile": True},
        }
    )
    run = assemble(config)

    def step() -> float:
        assert Path(temporary.name).is_dir()  # the data lives as long as this function
        return train_step(run.state, config).loss

    return step


def _dataset(folder: Path, shape: Shape) -> str:
    """Prepare a small dataset of random words and return its directory."""
    from mtron_data import prepare, train_tokenizer

    rng = random.Random(0)
    words = [f"{rng.randrange(36**3):x}" for _ in range(2000)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=2000))}) for _ in range(100)]
    text = folder / "text.jsonl"
    text.write_text("\n".join(lines) + "\n")
    tokenizer, dataset = str(folder / "tokenizer"), str(folder / "dataset")
    train_tokenizer([str(text)], vocab_size=min(512, shape.vocab_size), output=tokenizer)
    prepare([str(text)], tokenizer=tokenizer, output=dataset, workers=1)
    return dataset


REFERENCE = "transformers, eager"
CONTENDERS: dict[str, Callable[[Shape], Step]] = {
    "mtron, its training loop": mtron_loop,
    "mtron's model, plain loop": mtron_bare_fastest,
    "  the same, not compiled": mtron_bare_eager,
    "  the same, torch's products": mtron_bare_torch_products,
    "plain PyTorch, eager": plain,
    "plain PyTorch, compiled": plain_compiled,
    REFERENCE: transformers_eager,
    "transformers, compiled": transformers_compiled,
}
