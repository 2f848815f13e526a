import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtron_data import HuggingFaceTokenizer, Tokenizer, load_tokenizer, train_tokenizer


@given(text=st.text())
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(
    text=st.lists(
        st.sampled_from(
            ["\n", "\r\n", "    ", "\t", " ", "def", "x", "):", "123456", "_", "é", "<|endoftext|>"]
        )
    ).map("".join)
)
def test_any_layout_of_code_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_id not in ids


def test_a_batch_is_its_texts(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch([]) == []


def test_it_is_a_tokenizer(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert not isinstance(object(), Tokenizer)
    assert tokenizer.vocab_size == 600
    assert tokenizer.eos_id == 0
    assert tokenizer.decode([0]) == "<|endoftext|>"
    assert tokenizer.decode([0], skip_special_tokens=True) == ""


def test_special_tokens_are_read_only_on_request(tokenizer):
    text = "a<|endoftext|>b"
    assert 0 not in tokenizer.encode(text)
    ids = tokenizer.encode(text, parse_special_tokens=True)
    assert ids.count(0) == 1
    assert tokenizer.decode(ids) == text


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_layout_of_code_is_in_single_tokens(tmp_path):
    code = "class A:\n    def f(self):\n        return 12345\n\n\n    x     = 1\n" * 30
    path = tmp_path / "code.txt"
    path.write_text(code)
    tokenizer = train_tokenizer(path, 400, tmp_path / "out").tokenizer
    found = pieces(tokenizer, code)
    for token in (":\n    ", "):\n        ", "\n\n\n    ", "     ", "123", "45"):
        assert token in found


@pytest.mark.parametrize("ids", [[600], [-1], [1, 10**9]])
def test_ids_outside_the_vocabulary(tokenizer, ids):
    with pytest.raises(ValueError, match="is no token of this tokenizer"):
        tokenizer.decode(ids)


def test_from_a_directory_or_a_file(tokenizer_directory, tokenizer):
    from_file = load_tokenizer(tokenizer_directory / "tokenizer.json")
    assert from_file.fingerprint == tokenizer.fingerprint
    assert (from_file.eos_id, from_file.files) == (0, tokenizer.files)


def test_padding_and_truncation_of_the_file_are_ignored(tokenizer, texts):
    backend = tokenizer._build()
    backend.enable_padding(length=50)
    backend.enable_truncation(20)
    files = {**tokenizer.files, "tokenizer.json": backend.to_str().encode()}
    other = HuggingFaceTokenizer(files, "memory")
    assert other.encode_batch(texts[:3]) == tokenizer.encode_batch(texts[:3])


def test_what_the_post_processor_adds(tokenizer):
    value = json.loads(tokenizer.files["tokenizer.json"])
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    other = HuggingFaceTokenizer({"tokenizer.json": json.dumps(value).encode()}, "memory")
    assert other.encode("ab") == tokenizer.encode("ab")
    assert other.encode_batch(["ab"]) == [tokenizer.encode("ab")]
    assert other.encode("ab", add_special_tokens=True) == [0, *tokenizer.encode("ab")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no tokenizer, .*tokenizer\.json is missing"),
        ({"tokenizer.json": "{"}, "is not JSON"),
        ({"tokenizer.json": '{"model": 1}'}, r"tokenizer\.json is no tokenizer"),
        ({"tokenizer_config.json": "[]"}, r"tokenizer_config\.json must hold a JSON object"),
        ({"tokenizer_config.json": "{"}, r"tokenizer_config\.json: is not JSON"),
        (
            {"tokenizer_config.json": '{"eos_token": "</s>"}'},
            "names the eos_token '</s>', which is",
        ),
    ],
)
def test_damaged_files(tokenizer, tmp_path, files, message):
    if files and "tokenizer.json" not in files:
        tokenizer.save(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "eos", ['"<|endoftext|>"', '{"content": "<|endoftext|>", "lstrip": false}']
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_where_the_eos_token_may_be_named(tokenizer, eos, name):
    files = {
        "tokenizer.json": tokenizer.files["tokenizer.json"],
        name: b'{"eos_token": %s}' % eos.encode(),
    }
    assert HuggingFaceTokenizer(files, "memory").eos_id == 0
    assert (
        HuggingFaceTokenizer({"tokenizer.json": files["tokenizer.json"]}, "memory").eos_id is None
    )


def test_from_the_assets_of_a_checkpoint(tokenizer, tmp_path):
    assets = {**tokenizer.files, "../evil.json": b"{}"}
    other = HuggingFaceTokenizer(assets, "checkpoint")
    (tmp_path / "deep").mkdir()
    other.save(tmp_path / "deep")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert other.fingerprint == tokenizer.fingerprint
    with pytest.raises(ValueError, match=r"checkpoint: has no tokenizer\.json"):
        HuggingFaceTokenizer({}, "checkpoint")
