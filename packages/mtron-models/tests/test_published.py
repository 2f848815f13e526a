import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtron_models import build, num_parameters, preset, presets

PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "bert-base-uncased": 109_514_298,
    "bert-large-uncased": 335_174_458,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
}
"""Of the published weights; a tied head counts once."""

FIRST = ("gpt2", "qwen2.5-0.5b", "gemma-3-1b", "bert-base-uncased", "t5-small", "t5-v1.1-small")
"""One of each kind, for `make test`."""

SMALL = [
    pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow)
    for name, count in PARAMETERS.items()
    if count < 1e9
]


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters_is_that_of_the_published_model(name):
    assert num_parameters(preset(name)) == PARAMETERS[name]


def test_every_preset_is_tested():
    assert set(presets()) == {*PARAMETERS, "deepseek-v3"}


def test_number_of_parameters_of_deepseek_v3():
    """The published number leaves out the layer that predicts the token after the next."""
    config = preset("deepseek-v3")
    assert config.num_nextn_predict_layers == 1
    alone = config.model_copy(update={"num_nextn_predict_layers": 0})
    assert num_parameters(alone) == 671_026_419_200


def test_number_of_parameters_of_berts_encoder():
    config = preset("bert-base-uncased").model_copy(update={"heads": ("pooler",)})
    assert num_parameters(config) == 109_482_240


@pytest.mark.parametrize("name", SMALL)
def test_the_built_model_has_as_many(name):
    model = build(preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [p for p in SMALL if not p.values[0].startswith("t5")])
def test_the_built_model_computes_as_much(name):
    """Of a model with an encoder and a decoder, the test of all families counts both."""
    config, seq = preset(name), 16
    model = build(config).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, seq, dtype=torch.long, device="meta"))
    assert counter.get_total_flops() == seq * config.forward_flops_per_token(seq)


def test_what_one_is_like_another():
    v01, v03 = preset("mistral-7b-v0.1"), preset("mistral-7b-v0.3")
    assert (v01.sliding_window, v03.sliding_window) == (4096, None)
    assert (v01.rope_theta, v03.rope_theta) == (1e4, 1e6)
    assert preset("llama-3.2-3b").rope_scaling.factor == 32
    assert preset("llama-3.1-405b").rope_scaling.factor == 8
    assert preset("llama-3-70b").rope_scaling is None


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"got 'llama3-8b'; did you mean 'llama-3-8b'\?"):
        preset("llama3-8b")
    with pytest.raises(ValueError, match="there are gpt2, gpt2-medium"):
        preset("zzz")


def test_needs_no_torch():
    code = "import sys, mtron_models as m; m.preset('t5-small'); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
