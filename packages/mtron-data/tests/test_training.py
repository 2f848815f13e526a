import filecmp
import os
import subprocess
import sys

import pytest

from mtron_data import load_tokenizer, train_tokenizer


def same(a, b):
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    return not any(filecmp.cmpfiles(a, b, names, shallow=False)[1:])


def test_the_same_text_gives_the_same_bytes(corpus, tokenizer_directory, tmp_path):
    code = (
        "import sys; from mtron_data import train_tokenizer;"
        "train_tokenizer(sys.argv[1], 600, sys.argv[2])"
    )
    for parallel in ("true", "false"):
        output = tmp_path / parallel
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": parallel}
        subprocess.run(
            [sys.executable, "-c", code, str(corpus), str(output)], check=True, env=environment
        )
        assert same(output, tokenizer_directory)


def test_transformers_loads_it(tokenizer_directory, tokenizer, texts):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoTokenizer.from_pretrained(tokenizer_directory)
    assert (oracle.eos_token, oracle.eos_token_id, len(oracle)) == ("<|endoftext|>", 0, 600)
    for text in texts:
        ids = tokenizer.encode(text, parse_special_tokens=True)
        assert oracle(text)["input_ids"] == ids
        assert oracle.decode(ids) == tokenizer.decode(ids) == text


def test_again_is_up_to_date_and_anything_else_is_refused(corpus, tmp_path):
    output = tmp_path / "out"
    first = train_tokenizer(corpus, 400, output)
    assert not first.up_to_date
    again = train_tokenizer(str(corpus), 400, output)
    assert again.up_to_date
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    with pytest.raises(ValueError, match="exists and was trained on other sources"):
        train_tokenizer(corpus, 401, output)
    assert load_tokenizer(output).vocab_size == 400
    assert train_tokenizer(corpus, 401, output, overwrite=True).tokenizer.vocab_size == 401


def test_further_special_tokens(corpus, tmp_path):
    specials = ["<|im_start|>", "<|im_end|>"]
    tokenizer = train_tokenizer(corpus, 400, tmp_path / "out", special_tokens=specials).tokenizer
    assert tokenizer.encode("<|im_end|>", parse_special_tokens=True) == [2]
    assert tokenizer.vocab_size == 400


def test_a_small_text_gives_fewer_tokens(tmp_path):
    (tmp_path / "x.txt").write_text("ab ab")
    tokenizer = train_tokenizer(tmp_path / "x.txt", 1000, tmp_path / "out").tokenizer
    assert 257 < tokenizer.vocab_size < 265
    assert tokenizer.decode(tokenizer.encode("ünseen \x00")) == "ünseen \x00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"vocab_size": 256},
            "vocab_size: must hold 256 bytes and 1 special tokens, got 256; .* 257",
        ),
        ({"special_tokens": ["<|endoftext|>"]}, "must be distinct"),
        ({"special_tokens": [""]}, "must be distinct and not empty"),
        ({"inputs": "missing.txt"}, "no such file"),
    ],
)
def test_wrong_arguments(corpus, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(
            **{"inputs": corpus, "vocab_size": 300, "output": tmp_path / "o", **arguments}
        )
    assert not list(tmp_path.iterdir())


def test_a_malformed_line_leaves_nothing(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl: line 2: 'text' must be a string"):
        train_tokenizer(tmp_path / "x.jsonl", 300, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_directory_of_something_else_is_not_touched(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ValueError, match="exists and is no trained tokenizer"):
        train_tokenizer(corpus, 300, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mine").read_text() == "x"
