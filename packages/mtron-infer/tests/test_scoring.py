import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtron_infer import Engine, EngineConfig
from mtron_infer.scoring import plan_batches


def sequences(lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(300, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("budget", [2048, 70, 16])
def test_scores_are_those_of_plain_forward_passes(
    budget, make_engine, model, reference, tolerances
):
    given_ids = sequences([5, 64, 1, 2, 33, 5, 17])
    found = make_engine(max_batch_tokens=budget).score(given_ids)
    for ids, scores in zip(given_ids, found, strict=True):
        expected = reference.next_logprobs(model, ids)[:-1].gather(1, torch.tensor(ids)[1:, None])
        assert scores.dtype == np.float64
        assert scores.shape == (len(ids) - 1,)
        np.testing.assert_allclose(scores, expected[:, 0].numpy(), **tolerances.FP64)


def test_single_precision(make_model, tokenizer, model, make_engine, tolerances):
    single = make_model(torch.float32)
    given_ids = sequences([40, 7])
    found = Engine(single, tokenizer).score(given_ids)
    assert found[0].dtype == np.float32
    for scores, exact in zip(found, make_engine().score(given_ids), strict=True):
        np.testing.assert_allclose(scores, exact, **tolerances.FP32)


def test_nothing_to_score(make_engine):
    assert make_engine().score([]) == []
    assert make_engine().score([[4]])[0].shape == (0,)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"token_ids\[1\]: is empty"),
        ([1] * 65, r"token_ids\[1\]: has 65 tokens, but the context holds 64"),
        ([300], r"token_ids\[1\]: token ids are 0 to 299, got 300"),
    ],
)
def test_what_cannot_be_scored_is_named(ids, message, make_engine):
    with pytest.raises(ValueError, match=message):
        make_engine().score([[1, 2], ids])


def test_numpy_arrays_are_token_ids_too(make_engine):
    engine = make_engine()
    (a,), (b,) = engine.score([np.array([1, 2, 3])]), engine.score([[1, 2, 3]])
    assert np.array_equal(a, b)


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_batches_hold_every_sequence_once_within_the_budget(lengths, budget):
    groups = plan_batches(lengths, budget)
    assert sorted(i for group in groups for i in group) == [i for i, n in enumerate(lengths) if n]
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) == 1 or longest * len(group) <= budget


def test_the_budget_bounds_what_goes_through_the_model(model, tokenizer, monkeypatch):
    engine = Engine(model, tokenizer, EngineConfig(max_batch_tokens=50))
    seen = []
    backbone = type(model).backbone

    def spy(self, inputs, context):
        seen.append(inputs.numel())
        return backbone(self, inputs, context)

    monkeypatch.setattr(type(model), "backbone", spy)
    engine.score(sequences([20] * 9))
    assert max(seen) <= 50
    assert len(seen) == 5
