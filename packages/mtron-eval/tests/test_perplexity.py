import math

import pytest

from mtron_eval import evaluate

LONG = "The quick brown fox jumps over the lazy dog, twice: ünïcödé."


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(uniform_scorer, write_jsonl):
    data = write_jsonl({"text": LONG}, {"text": "short"})
    task = evaluate(uniform_scorer, ["perplexity"], [data]).tasks["perplexity"]
    num_bytes = len(LONG.encode()) + 5
    assert task.counts == {
        "documents": 2,
        "empty_documents": 0,
        "tokens": num_bytes,
        "bytes": num_bytes,
    }
    assert task.metrics["perplexity"].value == pytest.approx(257, rel=1e-12)
    assert task.metrics["bits_per_byte"].value == pytest.approx(math.log2(257), rel=1e-12)
    assert task.metrics["perplexity"].standard_error == pytest.approx(0, abs=1e-9)
    assert [row["tokens"] for row in task.documents] == [len(LONG.encode()), 5]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_token_is_scored_once_with_the_context_it_should_have(
    prefix_scorer, write_jsonl, batch_size
):
    data = write_jsonl({"text": LONG}, {"text": "short"})
    results = evaluate(
        prefix_scorer, ["perplexity"], [data], context=10, stride=4, batch_size=batch_size
    )
    tokens = [0, *(byte + 1 for byte in LONG.encode())]
    expected = 0.0
    for index in range(1, len(tokens)):
        # Eleven tokens fill the first window; then four new ones at a time, ending a window.
        window_end = 11 if index < 11 else min(len(tokens), 11 + -(-(index - 10) // 4) * 4)
        begin = max(0, window_end - 11)
        expected -= prefix_scorer.value(tokens[index], index - begin)
    row = results.tasks["perplexity"].documents[0]
    assert row["nll_nats"] == pytest.approx(expected, rel=1e-12)
    assert all(len(ids) <= 11 for ids in prefix_scorer.seen)
    assert [ids[0] for ids in prefix_scorer.seen].count(0) == 2


def test_similar_lengths_are_scored_together(prefix_scorer, write_jsonl):
    data = write_jsonl(*({"text": "x" * length} for length in (3, 9, 5, 1)))
    evaluate(prefix_scorer, ["perplexity"], [data], batch_size=2)
    assert [len(ids) for ids in prefix_scorer.seen] == [10, 6, 4, 2]


def test_domains_have_totals_of_their_own(prefix_scorer, write_jsonl):
    texts = {"a": ["one", "three"], "b": ["fifteen"]}
    records = [{"text": t, "domain": d} for d, ts in texts.items() for t in ts]
    whole = evaluate(prefix_scorer, ["perplexity"], [write_jsonl(*records)])
    for domain, own in texts.items():
        path = write_jsonl(*({"text": t} for t in own), name=f"{domain}.jsonl")
        alone = evaluate(prefix_scorer, ["perplexity"], [path])
        assert whole.tasks["perplexity"].groups[domain] == alone.tasks["perplexity"].metrics


def test_empty_documents_are_counted_and_skipped(uniform_scorer, write_jsonl):
    data = write_jsonl({"text": ""}, {"text": "text"}, {"text": ""})
    task = evaluate(uniform_scorer, ["perplexity"], [data]).tasks["perplexity"]
    assert task.counts["empty_documents"] == 2
    assert [row["line"] for row in task.documents] == [2]


def test_a_model_that_gives_nan_is_refused_with_the_document(prefix_scorer, write_jsonl):
    prefix_scorer.value = lambda token, before: math.nan if token == ord("!") + 1 else -1.0
    data = write_jsonl({"text": "fine"}, {"text": "not!"})
    with pytest.raises(ValueError, match=r"data\.jsonl: line 2: .*check its weights for NaN"):
        evaluate(prefix_scorer, ["perplexity"], [data])


def test_a_tokenizer_without_end_of_document_is_refused(uniform_scorer, write_jsonl):
    uniform_scorer.tokenizer.eos_id = None
    with pytest.raises(ValueError, match="no end-of-document token"):
        evaluate(uniform_scorer, ["perplexity"], [write_jsonl({"text": "a"})])
