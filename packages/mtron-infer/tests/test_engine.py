import pytest
import torch

from mtron_infer import QueueFullError, Request, SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def random_prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 300, (n,), generator=generator).tolist() for n in lengths]


PROMPTS = random_prompts([1, 2, 5, 9, 17, 30, 3, 44])


@pytest.mark.parametrize(
    "limits",
    [
        {"max_batch_size": 8},
        {"max_batch_size": 1},
        {"max_batch_size": 3},
        {"max_batch_size": 4, "max_batch_tokens": 4},
        {"max_batch_size": 8, "max_batch_tokens": 13, "max_queue": 2},
    ],
)
def test_greedy_equals_plain_forward_passes(limits, make_engine, model, reference):
    completions = make_engine(**limits).generate(PROMPTS, GREEDY)
    expected = [reference.greedy_loop(model, prompt, 12) for prompt in PROMPTS]
    assert [completion.token_ids for completion in completions] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)


def test_multi_head_and_tied_models_too(make_model, tokenizer, reference):
    from mtron_infer import Engine

    model = make_model(num_key_value_heads=4, tie_word_embeddings=True)
    completions = Engine(model, tokenizer).generate(PROMPTS[:5], GREEDY)
    expected = [reference.greedy_loop(model, prompt, 12) for prompt in PROMPTS[:5]]
    assert [completion.token_ids for completion in completions] == expected


def test_requests_join_and_leave_between_steps(make_engine, model, reference):
    engine = make_engine(max_batch_size=3, max_batch_tokens=16)
    tokens = {}
    todo = list(PROMPTS)
    while todo or engine.is_busy:
        if todo:
            tokens[engine.add(Request(todo.pop(0), GREEDY))] = []
        for output in engine.step():
            tokens[output.request_id] += [t.token_id for t in output.tokens]
    assert list(tokens.values()) == [reference.greedy_loop(model, p, 12) for p in PROMPTS]


def test_two_engines_may_share_a_model(make_engine, model, reference):
    first, second = make_engine(), make_engine()
    a, b = first.add(Request(PROMPTS[3], GREEDY)), second.add(Request(PROMPTS[4], GREEDY))
    tokens = {(first, a): [], (second, b): []}
    while first.is_busy or second.is_busy:
        for engine in (first, second):
            for output in engine.step():
                tokens[engine, output.request_id] += [t.token_id for t in output.tokens]
    assert tokens[first, a] == reference.greedy_loop(model, PROMPTS[3], 12)
    assert tokens[second, b] == reference.greedy_loop(model, PROMPTS[4], 12)


def test_the_model_still_works_without_a_cache(make_engine, model):
    tokens = torch.tensor([PROMPTS[5]])
    before = model(tokens)
    make_engine().generate(PROMPTS[:2], GREEDY)
    assert torch.equal(model(tokens), before)


def test_seeded_sampling_is_the_same_alone_and_in_a_batch(make_engine):
    params = SamplingParams(max_tokens=15, temperature=1.3, seed=7, n=3)
    alone = [make_engine(max_batch_size=1).generate([p], params)[0] for p in PROMPTS]
    together = make_engine(max_batch_size=8, max_batch_tokens=20).generate(PROMPTS, params)
    assert [[c.token_ids for c in a.choices] for a in alone] == [
        [c.token_ids for c in a.choices] for a in together
    ]
    assert len({tuple(choice.token_ids) for a in alone for choice in a.choices}) == 3 * len(PROMPTS)


def test_sampling_without_a_seed_differs(make_engine):
    params = SamplingParams(max_tokens=20)
    engine = make_engine()
    assert (
        engine.generate([[5]], params)[0].token_ids != engine.generate([[5]], params)[0].token_ids
    )


def test_a_seed_continues_its_own_text(make_engine):
    engine = make_engine()
    whole = engine.generate([[9, 8]], SamplingParams(max_tokens=20, seed=3, ignore_eos=True))[0]
    head, tail = whole.token_ids[:8], whole.token_ids[8:]
    params = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)
    assert engine.generate([[9, 8, *head]], params)[0].token_ids == tail


def test_logprobs_of_chosen_and_top_tokens(make_engine, model, reference):
    params = SamplingParams(max_tokens=6, seed=1, logprobs=4, temperature=2.0, ignore_eos=True)
    (completion,) = make_engine().generate([PROMPTS[2]], params)
    tokens = completion.choices[0].tokens
    expected = reference.next_logprobs(model, PROMPTS[2] + completion.token_ids)
    for position, token in enumerate(tokens, start=len(PROMPTS[2]) - 1):
        best = expected[position].topk(4)
        assert token.logprob == pytest.approx(float(expected[position][token.token_id]), abs=1e-12)
        assert [i for i, _ in token.top] == best.indices.tolist()
        assert [p for _, p in token.top] == pytest.approx(best.values.tolist(), abs=1e-12)
    total = sum(token.logprob for token in tokens)
    assert completion.choices[0].sum_logprob == pytest.approx(total)


@pytest.mark.parametrize("budget", [2048, 5])
def test_echo_scores_the_prompt(budget, make_engine, model, reference, tokenizer):
    text = "naïve café 😀 def add"
    engine = make_engine(max_batch_size=4, max_batch_tokens=budget)
    params = SamplingParams(max_tokens=0, echo=True, logprobs=2)
    (completion,) = engine.generate([text], params)
    ids = tokenizer.encode(text)
    assert completion.text == text
    assert completion.token_ids == ids == list(completion.prompt_token_ids)
    assert completion.finish_reason == "length"
    first, *others = completion.choices[0].tokens
    assert (first.logprob, first.top) == (None, ())
    expected = reference.next_logprobs(model, ids)
    for position, token in enumerate(others):
        assert token.logprob == pytest.approx(float(expected[position][token.token_id]), abs=1e-12)
        assert [i for i, _ in token.top] == expected[position].topk(2).indices.tolist()
    assert completion.choices[0].num_generated == 0


def test_offsets_point_into_the_text(make_engine, tokenizer):
    params = SamplingParams(max_tokens=30, echo=True, logprobs=0, seed=5, ignore_eos=True)
    (completion,) = make_engine().generate(["Köln 日本"], params)
    tokens = completion.choices[0].tokens
    offsets = [token.text_offset for token in tokens]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0 and offsets[-1] <= len(completion.text)
    prompt = tokenizer.encode("Köln 日本")
    assert completion.text == "Köln 日本" + tokenizer.decode(completion.token_ids[len(prompt) :])


def test_end_of_text_ends_and_is_left_out(make_engine, tokenizer):
    bias = SamplingParams(max_tokens=9, temperature=0.0, logit_bias={0: 100.0})
    (completion,) = make_engine().generate(["abc"], bias)
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", [], "stop")
    assert completion.choices[0].num_generated == 1
    going = bias.model_copy(update={"ignore_eos": True})
    (completion,) = make_engine().generate(["abc"], going)
    assert completion.token_ids == [0] * 9


def test_stop_string_across_tokens_is_not_shown(make_engine, tokenizer, reference, model):
    prompt = tokenizer.encode("def add(")
    tokens = reference.greedy_loop(model, prompt, 20)
    text = tokenizer.decode(tokens)
    heads = [tokenizer.decode(tokens[:k]) for k in range(20)]
    num_kept = next(k for k in range(3, 20) if heads[k] and not heads[k].endswith("\ufffd"))
    place = len(heads[num_kept])  # where a token begins with a character of its own
    stop = text[place : place + 5]
    assert text.index(stop) == place, "the test needs a stop string that occurs here first"
    params = SamplingParams(max_tokens=20, temperature=0.0, stop=(stop,), logprobs=0)
    engine = make_engine()
    engine.add(Request("def add(", params))
    shown, outputs = "", []
    while engine.is_busy:
        for output in engine.step():
            shown += output.text
            outputs.append(output)
            assert text[:place].startswith(shown)
    assert shown == text[:place]
    assert outputs[-1].finish_reason == "stop"
    kept = [token for output in outputs for token in output.tokens]
    assert [token.token_id for token in kept] == tokens[:num_kept]


def test_penalties_and_bias_change_the_choice(make_engine):
    engine = make_engine()
    plain = engine.generate([[7]], GREEDY)[0].token_ids
    banned = GREEDY.model_copy(update={"logit_bias": {plain[0]: -100.0}})
    assert engine.generate([[7]], banned)[0].token_ids[0] != plain[0]
    forced = GREEDY.model_copy(update={"logit_bias": {11: 50.0}, "max_tokens": 40})
    assert engine.generate([[7]], forced)[0].token_ids == [11] * 40
    for penalty in ("presence_penalty", "frequency_penalty"):
        weak = forced.model_copy(update={"logit_bias": {}, "ignore_eos": True})
        without = engine.generate([[7]], weak)[0].token_ids
        with_it = engine.generate([[7]], weak.model_copy(update={penalty: 2.0}))[0].token_ids
        assert len(set(with_it)) > len(set(without))


def test_the_context_ends_a_continuation(make_engine):
    engine = make_engine()
    params = SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True)
    (completion,) = engine.generate([PROMPTS[5]], params)
    assert len(completion.token_ids) == 64 - 30
    assert completion.finish_reason == "length"


def test_empty_text_begins_a_document(make_engine, model, reference):
    (completion,) = make_engine().generate([""], GREEDY)
    assert completion.prompt_token_ids == (0,)
    assert completion.token_ids == reference.greedy_loop(model, [0], 12)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([1] * 65, GREEDY, "prompt: has 65 tokens, but the context holds 64"),
        ([1] * 64, GREEDY, "nothing can follow"),
        ([], GREEDY, "prompt: is empty"),
        ([300], GREEDY, "prompt: token ids are 0 to 299, got 300"),
        ([-1], GREEDY, "got -1"),
        ([1.5], GREEDY, "must be text or integers"),
        ("\ud800", GREEDY, "prompt: is not valid Unicode"),
        ([1], SamplingParams(n=9), "n: the queue takes at most 8"),
        ([1], SamplingParams(logit_bias={300: 1.0}), "logit_bias: .* got 300"),
    ],
)
def test_what_can_never_run_is_refused(prompt, params, message, make_engine):
    engine = make_engine(max_queue=8)
    with pytest.raises(ValueError, match=message):
        engine.generate([[1], prompt], params)
    assert not engine.is_busy


def test_a_full_prompt_can_be_scored(make_engine):
    params = SamplingParams(max_tokens=0, echo=True, logprobs=0)
    (completion,) = make_engine().generate([[1] * 64], params)
    assert len(completion.token_ids) == 64


def test_a_full_queue_takes_all_or_none(make_engine):
    engine = make_engine(max_queue=3)
    first = engine.add(Request([1], SamplingParams(n=2)))
    with pytest.raises(QueueFullError, match="2 of at most 3"):
        engine.add(Request([1], SamplingParams(n=2)))
    assert engine.room == 1
    engine.cancel(first)
    assert [o.finish_reason for o in engine.step()] == ["abort", "abort"]
    assert engine.room == 3


def test_cancelled_requests_free_their_slots_and_disturb_nobody(make_engine, model, reference):
    engine = make_engine(max_batch_size=2, max_batch_tokens=8)
    ids = [engine.add(Request(prompt, GREEDY)) for prompt in PROMPTS]
    tokens = {id_: [] for id_ in ids}
    reasons = {}
    for step in range(1000):
        if step % 5 == 3 and step // 5 < 4:
            engine.cancel(ids[2 * (step // 5)])
        for output in engine.step():
            tokens[output.request_id] += [t.token_id for t in output.tokens]
            reasons[output.request_id] = output.finish_reason
        if not engine.is_busy:
            break
    assert [reasons[id_] for id_ in ids[1::2]] != ["abort"] * 4
    for id_, prompt in zip(ids[1::2], PROMPTS[1::2], strict=True):
        assert tokens[id_] == reference.greedy_loop(model, prompt, 12)
    engine.cancel(ids[0])  # finished: nothing happens
    engine.cancel(12345)


def test_generate_cleans_up_when_it_is_interrupted(make_engine, monkeypatch):
    engine = make_engine(max_batch_size=2)
    monkeypatch.setattr(engine._runner, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.generate(PROMPTS, GREEDY)
    monkeypatch.undo()
    assert engine.num_running == engine.num_waiting == 0
    engine.step()
    assert engine.generate([[3]], GREEDY)[0].finish_reason == "length"


def test_generate_leaves_other_requests_alone(make_engine, model, reference):
    engine = make_engine(max_batch_size=2)
    other = engine.add(Request(PROMPTS[2], GREEDY))
    (completion,) = engine.generate([PROMPTS[3]], GREEDY)
    assert completion.token_ids == reference.greedy_loop(model, PROMPTS[3], 12)
    outputs = []
    while engine.is_busy:
        outputs += engine.step()
    assert {output.request_id for output in outputs} == {other}
    tokens = [token.token_id for output in outputs for token in output.tokens]
    assert tokens == reference.greedy_loop(model, PROMPTS[2], 12)


def test_numbers_that_are_not_finite_abort_only_their_request(make_model, tokenizer, reference):
    from mtron_infer import Engine

    model = make_model()
    healthy = reference.greedy_loop(model, [5, 6], 12)
    assert 290 not in healthy
    with torch.no_grad():
        model.embed.weight[290] = float("nan")
    engine = Engine(model, tokenizer)
    params = GREEDY.model_copy(update={"echo": True, "logprobs": 1})
    bad, good = engine.generate([[5, 290, 6], [5, 6]], params)
    assert (bad.finish_reason, good.finish_reason) == ("abort", "length")
    assert all(t.logprob is None for t in bad.choices[0].tokens)
    assert good.token_ids[2:] == healthy
    again = engine.generate([[5, 6], [5, 6]], GREEDY)
    assert [c.token_ids for c in again] == [healthy, healthy]


def test_one_string_instead_of_a_list_is_refused(make_engine):
    with pytest.raises(ValueError, match="give a list"):
        make_engine().generate("abc", GREEDY)


def test_limits_beyond_the_model_are_refused(make_engine):
    with pytest.raises(ValueError, match="max_len: the model takes at most 64 tokens, got 65"):
        make_engine(max_len=65)
    (completion,) = make_engine(max_len=10).generate([[1, 2]], SamplingParams(ignore_eos=True))
    assert len(completion.token_ids) == 8


def test_tokens_that_only_the_model_has_are_never_chosen(make_model, tokenizer, reference):
    from mtron_infer import Engine

    model = make_model(vocab_size=320)
    with torch.no_grad():
        model.head.weight[310] = 3 * model.head.weight[:300].abs().sum(0)
        model.head.weight[311] = -model.head.weight[310]
    assert int(reference.next_logprobs(model, [5])[-1].argmax()) >= 300
    engine = Engine(model, tokenizer)
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=20, temperature=temperature, logprobs=20, seed=0)
        (completion,) = engine.generate([[5]], params)
        assert max(completion.token_ids) < 300
    token = completion.choices[0].tokens[0]
    expected = reference.next_logprobs(model, [5])[-1]
    assert token.logprob == pytest.approx(float(expected[token.token_id]), abs=1e-9)
    assert [i for i, _ in token.top] == expected[:300].topk(20).indices.tolist()
    with pytest.raises(ValueError, match="0 to 299, got 310"):
        engine.generate([[310]])
