import math
from collections import Counter

import pytest
import torch

from mtron_infer import SamplingParams
from mtron_infer.sampler import pick, random_key, sample, score
from mtron_infer.sequence import Continuation, PreparedRequest


def row(index=0, seed=0, prompt=(1,), generated=(), **params):
    request = PreparedRequest(tuple(prompt), "", SamplingParams(**params), seed, 1000)
    result = Continuation(
        0, index, request, random_key(seed, index), lambda ids: "x" * len(ids), ()
    )
    for token in generated:
        result.append(token, None)
    return result


def drawn_tokens(logits, count, **params):
    rows = [row(seed=seed, **params) for seed in range(count)]
    return sample(logits.expand(count, -1).clone(), rows)


@pytest.fixture
def logits():
    return torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def test_frequencies_are_the_probabilities(logits, tolerances):
    count = 20_000
    found = Counter(drawn_tokens(logits, count, temperature=0.7))
    for token, p in enumerate((logits / 0.7).softmax(-1).tolist()):
        sigma = math.sqrt(count * p * (1 - p))
        assert abs(found[token] - count * p) <= tolerances.FREQUENCY_SIGMAS * max(sigma, 1.0)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(5, 1.0), (0, 0.6), (10, 0.5), (1, 1.0), (0, 1e-9), (50, 0.95), (99, 1.0)]
)
def test_what_can_be_drawn_is_what_transformers_keeps(logits, top_k, top_p):
    from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

    kept = logits[None].clone()
    if top_k:
        kept = TopKLogitsWarper(top_k)(None, kept)
    if top_p < 1.0:
        kept = TopPLogitsWarper(top_p)(None, kept)
    allowed = set(kept[0].isfinite().nonzero()[:, 0].tolist())
    found = set(drawn_tokens(logits, 3000, top_k=top_k, top_p=top_p))
    assert found <= allowed
    share = kept[0].softmax(-1)
    assert {i for i in allowed if share[i] > 0.01} <= found


def test_a_draw_depends_on_seed_choice_and_position_only(logits):
    rows = [row(index=i % 3, seed=i // 3, prompt=[1] * (1 + i % 2)) for i in range(60)]
    together = sample(logits.expand(60, -1).clone(), rows)
    alone = [sample(logits[None].clone(), [r])[0] for r in rows]
    assert together == alone
    assert len(set(together)) > 5
    other_prompt = row(seed=5, prompt=(9, 9))
    assert sample(logits[None].clone(), [other_prompt]) == sample(
        logits[None].clone(), [row(seed=5, prompt=(3, 4))]
    )


def test_every_position_draws_anew(logits):
    rows = [row(seed=5, prompt=[1] * length) for length in range(1, 41)]
    assert len(set(sample(logits.expand(40, -1).clone(), rows))) > 10


def test_greedy_rows_and_drawn_rows_mix(logits):
    rows = [row(temperature=0.0), row(seed=3), row(temperature=0.0)]
    tokens = sample(logits.expand(3, -1).clone(), rows)
    assert tokens[0] == tokens[2] == int(logits.argmax())
    assert tokens[1] == sample(logits[None].clone(), [row(seed=3)])[0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-8, 100.0])
def test_extreme_temperatures(logits, temperature):
    tokens = set(drawn_tokens(logits, 200, temperature=temperature))
    assert tokens == {int(logits.argmax())} if temperature < 1 else len(tokens) > 30


def test_penalties_are_those_of_openai(logits):
    values = {"presence_penalty": 0.7, "frequency_penalty": 0.3, "logit_bias": {4: 1.5, 8: -2.0}}
    target = logits[None].clone()
    sample(target, [row(generated=[4, 4, 9], temperature=0.0, **values)])
    expected = logits.clone()
    expected[4] += 1.5 - 0.7 - 2 * 0.3
    expected[9] -= 0.7 + 0.3
    expected[8] -= 2.0
    torch.testing.assert_close(target[0], expected, rtol=0, atol=1e-14)


def test_scores_are_of_the_model_not_of_the_adjusted_logits(logits):
    biased = row(temperature=0.0, logit_bias={3: 100.0}, logprobs=2)
    plain = row(temperature=0.0)
    (token, found), (_, nothing) = pick(logits.expand(2, -1).clone(), [biased, plain], 50)
    expected = logits.log_softmax(-1)
    assert token == 3
    assert nothing is None
    assert found.logprob == pytest.approx(float(expected[3]), abs=1e-12)
    assert [i for i, _ in found.top] == expected.topk(2).indices.tolist()


def test_half_precision_is_scored_in_float32(logits):
    (found,) = score(logits[None].bfloat16(), [7], 1, 50)
    expected = logits.bfloat16().float().log_softmax(-1)[7]
    assert found.logprob == pytest.approx(float(expected), abs=1e-6)
