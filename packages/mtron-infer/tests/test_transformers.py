"""The engine beside transformers, with the same weights in float64."""

import pytest
import torch

from mtron_infer import SamplingParams

NAMES = {"embed.": "model.embed_tokens.", "norm.": "model.norm.", "head.": "lm_head."}


@pytest.fixture(scope="module")
def twin(model):
    from transformers import LlamaConfig, LlamaForCausalLM

    known = model.config.model_dump(exclude={"model_type", "hidden_dropout"})
    made = LlamaForCausalLM(LlamaConfig(**known, attn_implementation="eager")).double().eval()
    weights = {}
    for name, value in model.state_dict().items():
        start = next((old for old in NAMES if name.startswith(old)), "")
        weights[NAMES.get(start, "model.") + name.removeprefix(start)] = value
    made.load_state_dict(weights)
    return made


def test_greedy_tokens_are_those_of_generate(twin, make_engine):
    generator = torch.Generator().manual_seed(11)
    lengths = [1, 2, 3, 5, 8, 13, 21, 34] * 3
    prompts = [torch.randint(1, 300, (n,), generator=generator).tolist() for n in lengths]
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    engine = make_engine(max_batch_size=5, max_batch_tokens=32)
    for prompt, completion in zip(prompts, engine.generate(prompts, params), strict=True):
        with torch.inference_mode():
            whole = twin.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert completion.token_ids == whole[0, len(prompt) :].tolist()


def test_scores_are_those_of_its_logits(twin, make_engine, tolerances):
    ids = torch.randint(1, 300, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logprobs = twin(ids).logits.double().log_softmax(-1)
    expected = logprobs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    for row, scores in zip(expected, make_engine().score(ids.tolist()), strict=True):
        torch.testing.assert_close(torch.from_numpy(scores), row, **tolerances.AGAINST_OTHERS)
