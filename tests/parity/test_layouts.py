"""Every layout gives the numbers of one process: a small model here, the example's when slow."""

import json
import tomllib
from pathlib import Path

import pytest
from layouts import (
    LAYOUTS,
    ONE,
    descend,
    largest_difference,
    largest_gradient_error,
    train_steps,
    whole,
)
from tolerances import FP32, FP64

ROOT = Path(__file__).parents[2]
SEQ_LEN = 27
"""Not divisible by the ranks, so that sequence parallelism pads."""
FEW = ("tp2", "dp2-zero2", "tp2-sp-dp2-zero1")
"""For `make test` in fp32."""
MORE = ("tp2-dp2-ddp", "tp2-dp2-zero2", "tp2-sp-dp2-ddp")
"""Left out of `make test` in fp64."""
SIZES = {
    "vocab_size": 517,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.01}
FAMILIES = {
    "qwen3": {**SIZES, "head_dim": 10, "attention_bias": True},
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 5},
    "gemma3_text": {**SIZES, "head_dim": 8, "sliding_window": 5},
    "gpt2": {"vocab_size": 517, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 6},
    "bert": {
        **{name: SIZES[name] for name in SIZES if name != "num_key_value_heads"},
        "heads": ["masked_lm"],
        "attention_probs_dropout_prob": 0.1,
    },
    "mixtral": {**SIZES, "num_local_experts": 4, **EXPERTS},
    "qwen3_moe": {**SIZES, "moe_intermediate_size": 24, "num_experts": 4, **EXPERTS},
}
FAMILY_LAYOUTS = [
    (family, layout)
    for family in FAMILIES
    for layout in ("tp2", "tp2-sp", "tp2-dp2-zero2")
    # These drop attention weights, for which they must know the places of all tokens.
    if not (family in ("gpt2", "bert") and layout == "tp2-sp")
]
STEPS = 8
"""Of the small model; the example takes 20."""


def small(corpus, **model):
    """A run whose every size is awkward: heads, vocabulary, sequence, gradient accumulation."""
    return {
        "model": {
            "model_type": "llama",
            "vocab_size": 517,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "hidden_dropout": 0.1,
            **model,
        },
        "data": {"train": str(corpus / "train"), "seq_len": SEQ_LEN, "global_batch_size": 8},
        "optim": {"kind": "adamw", "lr": 0.003, "weight_decay": 0.1},
        "schedule": {"kind": "wsd", "warmup_steps": 3},
        "log": {"tensorboard": False, "plot": False},
    }


def example(corpus):
    """`examples/pretrain.toml` with AdamW, and with dropout."""
    data = tomllib.loads((ROOT / "examples/pretrain.toml").read_text())
    data["model"]["hidden_dropout"] = 0.1
    data["optim"] = {**data["optim"], "kind": "adamw", "lr": 0.003}
    data["optim"].pop("muon")
    data["data"]["train"] = str(corpus / "train")
    return data


def configured(data, layout, directory, dtype, micro_batch_size=2):
    return {
        **data,
        "run": {"steps": 40, **data.get("run", {}), "directory": str(directory), "dtype": dtype},
        "data": {
            **{key: value for key, value in data["data"].items() if key != "validation"},
            "micro_batch_size": micro_batch_size,
        },
        "parallel": {**layout.parallel, "bucket_bytes": 50_000},
    }


def run(workers, function, data, layout, *arguments):
    """Call `function` on every rank of a layout; return the reports."""
    if layout.world_size == 1:
        return [function(data, *arguments)]
    return workers.run(function, layout.world_size, data, *arguments, timeout_seconds=1200)


def compare(found, expected, tolerance):
    for report in found:
        assert report.losses == pytest.approx(expected[0].losses, abs=tolerance.loss, rel=0)
        assert report.norms == pytest.approx(expected[0].norms, rel=tolerance.gradients)
    for name, values in whole(expected, "initial").items():
        assert values.tobytes() == whole(found, "initial")[name].tobytes(), name
    error = largest_gradient_error(whole(found, "gradients"), whole(expected, "gradients"))
    assert error < tolerance.gradients
    difference = largest_difference(whole(found, "weights"), whole(expected, "weights"))
    assert difference < tolerance.weights


@pytest.fixture(scope="module")
def one_process(corpus, tmp_path_factory):
    """What one process does: by model (tied or not) and type of its numbers."""
    known = {}

    def reports(dtype, **model):
        key = json.dumps([dtype, model])
        if key not in known:
            data = configured(small(corpus, **model), ONE, tmp_path_factory.mktemp("one"), dtype)
            known[key] = [
                train_steps(data, STEPS, 5) if dtype == "float64" else descend(data, 5),
            ]
        return known[key]

    return reports


@pytest.mark.parametrize(
    "layout",
    [pytest.param(x, marks=pytest.mark.slow if x.name in MORE else []) for x in LAYOUTS],
    ids=lambda layout: layout.name,
)
def test_a_small_model_in_fp64(workers, corpus, one_process, tmp_path, layout):
    data = configured(small(corpus), layout, tmp_path, "float64")
    found = run(workers, train_steps, data, layout, STEPS, 5)
    compare(found, one_process("float64"), FP64)


@pytest.mark.parametrize(
    "layout",
    [pytest.param(x, marks=[] if x.name in FEW else pytest.mark.slow) for x in LAYOUTS],
    ids=lambda layout: layout.name,
)
def test_a_small_model_in_fp32(workers, corpus, one_process, tmp_path, layout):
    model = {"tie_word_embeddings": False, "num_key_value_heads": 6}
    data = configured(small(corpus, **model), layout, tmp_path, "float32")
    found = run(workers, descend, data, layout, 5)
    compare(found, one_process("float32", **model), FP32)


def family_run(corpus, family):
    return {**small(corpus), "model": {"model_type": family, **FAMILIES[family]}}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout"), FAMILY_LAYOUTS)
def test_a_family_in_fp64(workers, corpus, tmp_path, family, layout):
    (chosen,) = (entry for entry in LAYOUTS if entry.name == layout)
    data = family_run(corpus, family)
    expected = train_steps(configured(data, ONE, tmp_path / "one", "float64"), STEPS, 5)
    data = configured(data, chosen, tmp_path / "several", "float64")
    compare(run(workers, train_steps, data, chosen, STEPS, 5), [expected], FP64)


@pytest.fixture(scope="module")
def example_in_one_process(large_corpus, tmp_path_factory):
    known = {}

    def reports(dtype):
        if dtype not in known:
            data = configured(example(large_corpus), ONE, tmp_path_factory.mktemp("one"), dtype)
            known[dtype] = [
                train_steps(data, 20, 5) if dtype == "float64" else descend(data, 20),
            ]
        return known[dtype]

    return reports


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_example(workers, large_corpus, example_in_one_process, tmp_path, layout, dtype):
    data = configured(example(large_corpus), layout, tmp_path, dtype)
    if dtype == "float64":
        found = run(workers, train_steps, data, layout, 20, 5)
        compare(found, example_in_one_process(dtype), FP64)
    else:
        found = run(workers, descend, data, layout, 20)
        compare(found, example_in_one_process(dtype), FP32)
