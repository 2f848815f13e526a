import hashlib
import json
import math

import pytest

from mtron_eval import evaluate

DOCUMENTS = [(1, 3), (2, 40), (3, 90)]
"""Seed and words of each; the last two are several windows long."""


@pytest.fixture
def data(make_text, write_jsonl):
    return write_jsonl(*({"text": make_text(seed, words)} for seed, words in DOCUMENTS))


def score_by_hand(model, tokens, context, stride):
    """Log-likelihood of a document by one forward pass per token, as the definition says."""
    import torch

    total = 0.0
    for index in range(1, len(tokens)):
        if index <= context:
            begin = 0
        else:
            new = index - context - 1
            last = min(context + stride * (new // stride + 1), len(tokens) - 1)
            begin = last - context
        logits = model(torch.tensor([tokens[begin:index]])).logits[0, -1]
        total += torch.log_softmax(logits.double(), dim=-1)[tokens[index]].item()
    return total


@pytest.mark.parametrize(("context", "stride"), [(31, 15), (20, 7), (1, 1)])
def test_the_numbers_are_those_of_transformers(
    checkpoint, hf_model, data, context, stride, tolerances
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    results = evaluate(
        checkpoint, ["perplexity"], [data], context=context, stride=stride, device="cpu"
    )
    model = transformers.LlamaForCausalLM.from_pretrained(hf_model).eval()
    tokenizer = Tokenizer.from_file(str(hf_model / "tokenizer.json"))
    task = results.tasks["perplexity"]
    nats, num_bytes = 0.0, 0
    for row, line in zip(task.documents, data.read_text().splitlines(), strict=True):
        text = json.loads(line)["text"]
        tokens = [0, *tokenizer.encode(text).ids]
        with torch.inference_mode():
            expected = -score_by_hand(model, tokens, context, stride)
        assert row["tokens"] == len(tokens) - 1
        assert row["nll_nats"] == pytest.approx(expected, rel=tolerances.fp32_log_likelihood)
        nats, num_bytes = nats + expected, num_bytes + len(text.encode())
    assert task.metrics["bits_per_byte"].value == pytest.approx(
        nats / math.log(2) / num_bytes, rel=tolerances.fp32_log_likelihood
    )


def test_the_default_context_is_the_models_length(checkpoint, data):
    config = evaluate(checkpoint, ["perplexity"], [data]).provenance["config"]
    assert (config["context"], config["stride"]) == (31, 15)


def test_batches_change_only_rounding(checkpoint, data, tolerances):
    one, many = (
        evaluate(checkpoint, ["perplexity"], [data], batch_size=size).tasks["perplexity"]
        for size in (1, 64)
    )
    for left, right in zip(one.documents, many.documents, strict=True):
        assert left["nll_nats"] == pytest.approx(
            right["nll_nats"], rel=tolerances.fp32_log_likelihood
        )


def test_the_report_identifies_model_and_tokenizer(checkpoint, hf_model, data):
    model = evaluate(checkpoint, ["perplexity"], [data], dtype="float64").provenance["model"]
    step = checkpoint / "step-00000000"
    assert model["checkpoint"] == str(step)
    assert model["step"] == 0
    manifest = (step / "MANIFEST.json").read_bytes()
    assert model["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    tokenizer = (hf_model / "tokenizer.json").read_bytes()
    assert model["tokenizer_sha256"] == hashlib.sha256(tokenizer).hexdigest()
    assert model["dtype"] == "float64"
    assert model["device"] == "cpu"
