import copy
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtron_models import BertConfig, Context, RandomKey, build, config_from_dict, flops_per_token


def test_tokens_see_both_sides(family_model, tokens):
    model = family_model("bert")
    inputs, _ = tokens(1, 9)
    for place in (0, 4, 8):
        changed = inputs.clone()
        changed[0, place] = (changed[0, place] + 1) % 101
        difference = (model(inputs) - model(changed)).abs().amax(-1)[0]
        assert bool((difference > 1e-6).all())


def test_documents_in_one_row_are_as_if_alone(family_model, tokens, tolerances):
    model = family_model("bert")
    inputs, _ = tokens(2, 9)
    boundaries = [0, 4, 9, 10, 18]
    lengths = [end - start for start, end in pairwise(boundaries)]
    positions = torch.cat([torch.arange(length) for length in lengths]).view(2, 9)
    context = Context(positions=positions, cu_seqlens=torch.tensor(boundaries), max_seqlen=8)
    packed = model(inputs, context).flatten(0, 1)
    for start, end in pairwise(boundaries):
        alone = model(inputs.flatten()[None, start:end])[0]
        assert (packed[start:end] - alone).abs().max() < tolerances.FP64_CACHED


def test_token_types_matter_and_are_0_by_default(family_model, tokens):
    model = family_model("bert_with_all_heads", hidden_dropout_prob=0.0,
                         attention_probs_dropout_prob=0.0)  # fmt: skip
    inputs, _ = tokens(2, 9)
    expected = model.backbone(inputs)
    zeros = Context(token_types=torch.zeros_like(inputs))
    torch.testing.assert_close(model.backbone(inputs, zeros), expected, rtol=0, atol=1e-14)
    types = torch.zeros_like(inputs)
    types[:, 5:] = 2
    assert (model.backbone(inputs, Context(token_types=types)) - expected).abs().max() > 1e-3


def test_forward_returns_what_the_heads_make(family_config, tokens):
    inputs, _ = tokens(2, 9)
    shapes = {
        (): (2, 9, 36),
        ("pooler",): (2, 9, 36),
        ("masked_lm",): (2, 9, 101),
        ("pooler", "next_sentence"): (2, 2),
        ("pooler", "classifier"): (2, 5),
    }
    for heads, shape in shapes.items():
        model = build(family_config("bert", heads=heads, num_labels=5), device="cpu")
        assert model(inputs).shape == shape
    both = build(family_config("bert", heads=("pooler", "masked_lm", "classifier")), device="cpu")
    assert [logits.shape for logits in both(inputs)] == [(2, 9, 101), (2, 2)]


def loss_of(logits, labels):
    return -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def test_train_loss_is_the_weighted_sum_of_both_heads_losses(family_model, tokens):
    model = family_model("bert_with_all_heads").eval()
    inputs, labels = tokens(3, 8)
    weights = torch.rand(3, 8, dtype=torch.float64) * (labels % 2)
    classes, row_weights = torch.tensor([0, 1, 1]), torch.rand(3, dtype=torch.float64)
    of_tokens, of_rows = model(inputs)
    masked = (loss_of(of_tokens, labels) * weights).sum().item()
    sentences = (loss_of(of_rows, classes) * row_weights).sum().item()
    loss = model.train_loss(inputs, labels, weights)
    assert loss.item() == pytest.approx(masked, rel=1e-12)
    both = model.train_loss(inputs, labels, weights, Context(), classes, row_weights)
    assert both.item() == pytest.approx(masked + sentences, rel=1e-12)


def test_a_classifier_learns_from_labels_of_rows(family_model, tokens):
    model = family_model("bert", heads=("pooler", "classifier"), num_labels=4)
    inputs, _ = tokens(3, 8)
    labels, weights = torch.tensor([3, 0, 1]), torch.rand(3, dtype=torch.float64)
    expected = (loss_of(model(inputs), labels) * weights).sum().item()
    assert model.train_loss(inputs, labels, weights).item() == pytest.approx(expected, rel=1e-12)


def test_unclear_labels_are_refused(family_model, tokens):
    inputs, labels = tokens(2, 4)
    weights, classes = torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)
    model = family_model("bert_with_all_heads", torch.float32).eval()
    with pytest.raises(ValueError, match="row_labels_B: must come with row_weights_B"):
        model.train_loss(inputs, labels, weights, Context(), classes)
    one = family_model("bert", heads=("pooler", "classifier"), num_labels=1)
    with pytest.raises(ValueError, match="num_labels: the cross-entropy needs at least 2"):
        one.train_loss(inputs, classes, torch.ones(2))
    with pytest.raises(ValueError, match="without a masked-LM head the classes are the labels"):
        one.train_loss(inputs, classes, torch.ones(2), Context(), classes, torch.ones(2))


def test_dropout_depends_on_the_sample_only_and_is_off_in_evaluation(family_model, tokens):
    model = family_model("bert_with_all_heads", heads=("pooler", "classifier"),
                         hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)  # fmt: skip
    inputs, _ = tokens(4, 9)
    labels, ids = torch.tensor([0, 1, 1, 0]), torch.tensor([12, 5, 7, 2**40])

    def loss(rows):
        context = Context(random=RandomKey(0, 3, ids[rows]))
        weights = torch.full((len(inputs[rows]),), 0.25, dtype=torch.float64)
        return model.train_loss(inputs[rows], labels[rows], weights, context).item()

    whole = loss(slice(None))
    assert loss([3, 0]) + loss([1]) + loss([2]) == pytest.approx(whole, rel=1e-13)
    with pytest.raises(ValueError, match=r"context\.random: needed"):
        model(inputs)
    model.eval()
    assert torch.equal(model(inputs), model(inputs))
    assert loss(slice(None)) != whole


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_training_compiles_into_one_graph(family_model, tokens):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = family_model("bert_with_all_heads", torch.float32, num_hidden_layers=1)
    compiled = torch.compile(model.train_loss, fullgraph=True, backend="aot_eager")
    for step in range(3):
        inputs, labels = tokens(2, 16, seed=step)
        context = Context(
            token_types=inputs % 3,
            cu_seqlens=torch.tensor([0, 5 + step, 20, 32]),
            random=RandomKey(3, step, torch.tensor([step, 9])),
        )
        arguments = (inputs, labels, torch.rand(2, 16), context, inputs[:, 0] % 2, torch.rand(2))
        torch.testing.assert_close(compiled(*arguments), model.train_loss(*arguments))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_every_dropout_has_a_place_of_its_own(family_model):
    model = family_model("bert_with_all_heads", heads=("pooler", "classifier"))
    sites = [module.site for module in model.modules() if hasattr(module, "site")]
    sites += [layer.self_attn.core.keywords["site"] for layer in model.layers.values()]
    assert len(set(sites)) == len(sites) == 2 + 3 * 3


@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.2), (0.4, 0.4), (0.0, 0.0)])
def test_the_classifier_has_its_own_dropout(family_config, dropout, expected):
    config = family_config("bert", heads=("pooler", "classifier"), classifier_dropout=dropout,
                           hidden_dropout_prob=0.2)  # fmt: skip
    assert build(config).row_dropout.probability == expected
    sentences = family_config("bert", heads=("pooler", "next_sentence"), hidden_dropout_prob=0.2)
    assert build(sentences).row_dropout.probability == 0


def test_stages_by_deletion_compose_to_the_model(family_model, tokens):
    model = family_model("bert_with_all_heads").eval()
    inputs, _ = tokens(2, 9)
    context = Context(token_types=(inputs % 3))
    first, last = copy.deepcopy(model), copy.deepcopy(model)
    del first.layers["2"], first.pooler, first.row_head, first.head_transform, first.head
    del last.embed, last.embed_norm, last.layers["0"], last.layers["1"]
    composed = last(first(inputs, context), context)
    for ours, whole in zip(composed, model(inputs, context), strict=True):
        assert torch.equal(ours, whole)


def test_rows_longer_than_the_table_of_positions_are_refused(family_model, tokens):
    model = family_model("bert", max_position_embeddings=8)
    with pytest.raises(ValueError, match="not be longer than the 8 positions"):
        model(tokens(1, 9)[0])


@pytest.mark.parametrize("heads", [(), ("masked_lm",), ("pooler", "classifier"),
                                   ("pooler", "masked_lm", "next_sentence")])  # fmt: skip
def test_flops_are_those_that_torch_counts(heads, family_config):
    config = family_config("bert", heads=heads, num_labels=4)
    batch, seq = 3, 12  # divides the operations of a head that works once per row
    model = build(config)
    inputs = torch.zeros(batch, seq, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        results = model(inputs)
        sum(result.sum() for result in (results if len(heads) == 3 else [results])).backward()
    assert flops_per_token(config, seq) * batch * seq == counter.get_total_flops()


def test_hugging_faces_architecture_says_the_heads():
    values = {"model_type": "bert", "architectures": ["BertForSequenceClassification"],
              "id2label": {"0": "a", "1": "b", "2": "c"}, "is_decoder": False,
              "chunk_size_feed_forward": 2}  # fmt: skip
    config = config_from_dict(values)
    assert config.heads == ("pooler", "classifier")
    assert config.num_labels == 3
    assert config_from_dict({"model_type": "bert", "architectures": None}).heads == ("masked_lm",)
    with pytest.raises(ValueError, match=r"architectures: must be one of BertModel.*BertLMHead"):
        config_from_dict({"model_type": "bert", "architectures": ["BertLMHeadModel"]})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": ["classifier"]}, "heads: 'classifier' needs 'pooler'"),
        ({"heads": ["pooler", "classifier", "next_sentence"]}, "heads: only one of"),
        ({"heads": ["pooler", "pooler"]}, "heads: names one twice"),
        ({"hidden_size": 100}, "hidden_size: must be a multiple of .* = 12, got 100; use 108"),
        ({"pad_token_id": 30522}, "pad_token_id: is not a token"),
        ({"is_decoder": True}, "is_decoder: only False can be honoured"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: only 'absolute'"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({"model_type": "bert", **fields})


def test_the_published_size():
    parameters = build(BertConfig(heads=("pooler",))).parameters()
    assert sum(p.numel() for p in parameters) == 109_482_240  # BERT base, "110M"
