import json

import pytest
import torch
from rich.console import Console

from mtron_data import prepare, train_tokenizer
from mtron_train import ProgressLine, StopRequest, assemble, config_from_mapping, train


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """Two small prepared datasets: `train` and `validation`."""
    root = tmp_path_factory.mktemp("datasets")
    for name, numbers in (("train", range(4000)), ("validation", range(4000, 4300))):
        lines = [f"{n} plus {n * 7 % 31} is {n + n * 7 % 31}\n" for n in numbers]
        documents = ["".join(lines[i : i + 20]) for i in range(0, len(lines), 20)]
        text = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        (root / f"{name}.jsonl").write_text(text)
    train_tokenizer([str(root / "train.jsonl")], vocab_size=300, output=str(root / "tokenizer"))
    for name in ("train", "validation"):
        prepare(
            [str(root / f"{name}.jsonl")],
            tokenizer=str(root / "tokenizer"),
            output=str(root / name),
            workers=1,
        )
    return root


@pytest.fixture
def configure(datasets, tmp_path):
    """Return a function that makes a small configuration, with sections replaced by keywords."""

    def make(directory="run", steps=40, **sections):
        data = {
            "run": {"directory": str(tmp_path / directory), "steps": steps, "seed": 3},
            "model": {
                "model_type": "llama",
                "vocab_size": 300,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32,
                "tie_word_embeddings": True,
                "hidden_dropout": 0.1,
            },
            "data": {
                "train": str(datasets / "train"),
                "validation": str(datasets / "validation"),
                "seq_len": 32,
                "global_batch_size": 8,
                "micro_batch_size": 4,
            },
            "optim": {"kind": "muon", "lr": 0.01},
            "schedule": {"kind": "wsd", "warmup_steps": 1},
            "checkpoint": {"every_steps": 10},
            "validation": {"every_steps": 15, "batch_size": 4, "max_samples": 8},
            "log": {"every_steps": 1, "tensorboard": False, "plot": False},
        }
        for name, values in sections.items():
            data[name] = {**data.get(name, {}), **values}
        return config_from_mapping(data)

    return make


@pytest.fixture
def run_to():
    """Return a function that trains a configuration, stopping early after a given step."""

    def run(config, stop_after=None):
        with StopRequest() as stop, ProgressLine(Console(quiet=True), config.run.steps) as progress:
            assembled = assemble(config)
            if stop_after is not None:
                _stop_after(assembled, stop, stop_after)
            return assembled, train(assembled, progress, stop)

    return run


def _stop_after(run, stop, step):
    """Request the stop when the optimizer has made its `step`-th update."""
    update = run.state.optimizer.step

    def counted(*args, **kwargs):
        result = update(*args, **kwargs)
        stop.requested = run.state.step + 1 >= step
        return result

    run.state.optimizer.step = counted
