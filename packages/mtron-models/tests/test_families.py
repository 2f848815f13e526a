"""What holds for every family.

A test that takes `family` runs for each case of tiny_families.toml, one that takes `decoder` for
each of those that see no future.
"""

import copy
import json
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtron_models import (
    Context,
    RandomKey,
    Shard,
    build,
    config_from_dict,
    flops_per_token,
    num_parameters,
)
from mtron_models.layers.latent_attention import LatentAttention, absorb

TABLE = Path(__file__).with_name("tiny_families.toml")


def test_the_configuration_comes_back_from_its_own_dictionary(family, family_config):
    config = family_config(family)
    assert config_from_dict(config.model_dump()) == config
    assert config_from_dict(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_configurations_need_no_torch():
    code = f"""
import sys, tomllib
from mtron_models import config_from_dict, flops_per_token, num_parameters
tables = tomllib.loads(open({str(TABLE)!r}).read())
for values in (case for kind in tables.values() for case in kind.values()):
    config = config_from_dict(values)
    config.layout(), num_parameters(config), flops_per_token(config, 8)
    if "torch" in sys.modules:
        sys.exit(config.model_type)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_shapes_are_those_of_the_built_model_in_its_order(family, family_config):
    config = family_config(family)
    parameters = dict(build(config).named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    assert list(config.parameter_shapes().items()) == list(shapes.items())
    assert num_parameters(config) == sum(p.numel() for p in parameters.values())


def test_every_parameter_gets_an_initial_value(family, family_model):
    model = family_model(family)
    rules = model.init_rules()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        rule = next(rule for pattern, rule in rules.items() if fnmatchcase(name, pattern))
        std = getattr(rule, "std", 0.0)
        assert parameter.std(correction=0).item() == pytest.approx(std, rel=0.5, abs=1e-12), name


def test_the_layout_covers_every_parameter(family, family_config):
    config = family_config(family)
    table = config.layout()
    assert build(config).layout() == table
    for name, shape in config.parameter_shapes().items():
        rule = next((rule for pattern, rule in table.items() if fnmatchcase(name, pattern)), None)
        assert rule is not None, name
        while isinstance(rule, Shard):
            parts = rule.segments or (shape[rule.dim],)
            assert sum(parts) == shape[rule.dim], name
            if rule.of:
                assert set(parts) == {rule.unit * getattr(config, rule.of)}, name
            rule = rule.inner


def test_every_pattern_of_a_layout_is_of_a_parameter(families):
    for configs in families.values():
        names = [name for config in configs for name in config.parameter_shapes()]
        for pattern in {pattern for config in configs for pattern in config.layout()}:
            assert any(fnmatchcase(name, pattern) for name in names), pattern


@pytest.fixture
def families():
    """The configurations of the table, grouped by the module of their class."""
    grouped = {}
    for kind in tomllib.loads(TABLE.read_text("utf-8")).values():
        for values in kind.values():
            config = config_from_dict(values)
            grouped.setdefault(type(config).__module__, []).append(config)
    return grouped


def counted_flops(model, batch, seq):
    """The operations of a training step by torch's own counter."""
    device = next(model.parameters()).device
    inputs = torch.zeros(batch, seq, dtype=torch.int64, device=device)
    weights = torch.ones(batch, seq, device=device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.train_loss(inputs, inputs, weights).backward()
    return counter.get_total_flops()


def test_flops_are_those_that_torch_counts(decoder, family_model):
    model = family_model(decoder, torch.float32)
    expected = 2 * 13 * flops_per_token(model.config, 13)
    assert counted_flops(model, 2, 13) == expected


def test_no_token_sees_the_future(decoder, family_model, tokens, tolerances):
    model = family_model(decoder)
    inputs, _ = tokens(1, 12)
    changed = inputs.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 101
    difference = (model(inputs) - model(changed)).abs().amax(-1)[0]
    # What else goes to a token's experts changes how their products are rounded.
    has_experts = any(name.endswith("experts") for name, _ in model.named_modules())
    assert bool((difference[:6] <= (tolerances.FP64_CACHED if has_experts else 0.0)).all())
    assert difference[6] > 1e-6


def test_positions_are_counted_from_0_and_matter(decoder, family_model, tokens):
    model = family_model(decoder)
    inputs, _ = tokens(2, 9)
    expected = model(inputs)
    counted = torch.arange(9).expand(2, 9)
    assert torch.equal(model(inputs, Context(positions=counted)), expected)
    stretched = model(inputs, Context(positions=counted * 3))
    assert (stretched - expected).abs().max() > 1e-3


def test_documents_in_one_row_are_as_if_alone(decoder, family_model, tokens, tolerances):
    model = family_model(decoder)
    inputs, _ = tokens(2, 13)
    boundaries = [0, 7, 13, 14, 26]
    lengths = [end - start for start, end in pairwise(boundaries)]
    positions = torch.cat([torch.arange(length) for length in lengths]).view(2, 13)
    documents = torch.tensor(boundaries, dtype=torch.int32)
    context = Context(positions=positions, cu_seqlens=documents, max_seqlen=12)
    packed = model(inputs, context).flatten(0, 1)
    for start, end in pairwise(boundaries):
        alone = model(inputs.flatten()[None, start:end])[0]
        assert (packed[start:end] - alone).abs().max() < tolerances.FP64_CACHED


def stages(model):
    """Cut a model of three layers into three stages by deleting the other parts of copies."""
    first, middle, last = (copy.deepcopy(model) for _ in range(3))
    for stage, kept in ((first, "0"), (middle, "1"), (last, "2")):
        for index in set(stage.layers) - {kept}:
            del stage.layers[index]
    del first.norm, first.head
    del middle.embed, middle.norm
    middle.head = None
    del last.embed
    return first, middle, last


def test_stages_by_deletion_compose_to_the_model(decoder, family_config, family_model, tokens):
    has_dropout = "hidden_dropout" in type(family_config(decoder)).model_fields
    model = family_model(decoder, **({"hidden_dropout": 0.1} if has_dropout else {}))
    context = Context(random=RandomKey(0, 1, torch.tensor([4, 9])))
    inputs, labels = tokens(2, 9)
    weights = torch.full((2, 9), 1 / 18, dtype=torch.float64)
    model.train_loss(inputs, labels, weights, context).backward()

    first, middle, last = stages(model)
    hidden = middle(first(inputs, context), context)
    assert torch.equal(last(hidden, context), model(inputs, context))
    last.train_loss(hidden, labels, weights, context).backward()
    gradients = {}
    for stage in (first, middle, last):
        for name, parameter in stage.named_parameters():
            if parameter.requires_grad:
                gradients.setdefault(name, []).append(parameter.grad)
    if "head.weight" not in dict(model.named_parameters()):  # tied: each stage has its part
        gradients["embed.weight"] += gradients.pop("head.weight")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        parts = gradients.pop(name)
        assert torch.equal(parameter.grad, sum(parts[1:], parts[0])), name
    assert not gradients


class CachedCore:
    """An attention core attached from outside: keeps keys and values in `context.caches`.

    It does what `spec` says, token by token as its formula reads.
    """

    def __init__(self, layer, spec):
        self.layer = layer
        self.spec = spec

    def __call__(self, q, k, v, context):
        spec = self.spec
        kept = (k, v) if spec.values_in_keys is None else (k,)
        if self.layer in context.caches:
            pairs = zip(context.caches[self.layer], kept, strict=True)
            kept = tuple(torch.cat(pair, dim=2) for pair in pairs)
        context.caches[self.layer] = kept
        k = kept[0]
        v = k[..., : spec.values_in_keys] if len(kept) == 1 else kept[1]
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if spec.scale is None else spec.scale)
        if spec.softcap is not None:
            scores = spec.softcap * (scores / spec.softcap).tanh()
        distance = context.positions[:, None, :, None] - torch.arange(k.shape[2])
        seen = (distance >= 0) & (distance < (spec.window or 10**9))
        return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def decode(model, inputs, lengths):
    """The logits of `inputs` when they come in pieces of `lengths` tokens."""
    caches, parts, start = {}, [], 0
    for piece in inputs.split(lengths, dim=1):
        positions = torch.arange(start, start + piece.shape[1]).expand(piece.shape)
        parts.append(model(piece, Context(positions=positions, caches=caches)))
        start += piece.shape[1]
    return torch.cat(parts, dim=1)


def attach_caches(model):
    for name, module in model.named_modules():
        if hasattr(module, "core"):
            module.core = CachedCore(name, module.spec)


PIECES = [[11], [5, 1, 1, 1, 1, 1, 1], [1] * 11, [3, 6, 2]]


@torch.no_grad()
def test_cached_decoding_is_the_full_forward(decoder, family_model, tokens, tolerances):
    inputs, _ = tokens(2, 11)
    for dtype, limit in ((torch.float64, tolerances.FP64_CACHED),
                         (torch.float32, tolerances.FP32_CACHED)):  # fmt: skip
        model = family_model(decoder, dtype).eval()
        expected = model(inputs)
        is_latent = any(isinstance(module, LatentAttention) for module in model.modules())
        for absorbed in (False, True) if is_latent else (False,):
            if is_latent:
                absorb(model, absorbed)
            attach_caches(model)
            for lengths in PIECES:
                assert (decode(model, inputs, lengths) - expected).abs().max() < limit
