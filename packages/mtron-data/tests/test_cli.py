import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mtron_data import Manifest
from mtron_data.cli import app


@pytest.fixture
def invoke():
    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return call


def test_from_text_to_a_verified_dataset(invoke, corpus, tmp_path, texts):
    bpe, data = tmp_path / "bpe", tmp_path / "data"
    arguments = ("train-tokenizer", corpus, "--vocab-size", 500, "--output", bpe)
    assert "written, 500 tokens" in invoke(*arguments).stdout
    assert "up to date, 500 tokens" in invoke(*arguments).stdout
    arguments = ("prepare", corpus, "--tokenizer", bpe, "--output", data, "--workers", 1)
    manifest_line = f"written, {len(texts)} documents"
    assert manifest_line in invoke(*arguments).stdout
    assert "up to date" in invoke(*arguments).stdout
    manifest = Manifest.load(data / "manifest.json")
    shown = invoke("inspect", data, "--document", 1, "--tokens", 30).stdout
    assert f"{manifest.num_tokens:,}" in shown
    assert texts[1][:20] in shown
    assert "all well" in invoke("verify", data).stdout
    assert (
        "--no-eos"
        not in invoke(
            "prepare", corpus, "--tokenizer", bpe, "--output", data, "--overwrite", "--no-eos"
        ).stdout
    )
    assert not Manifest.load(data / "manifest.json").append_eos


def test_inspect_shows_ids_where_there_is_no_tokenizer(invoke, write_pair):
    prefix = write_pair([[7, 8], [9]]).prefix
    assert "[7, 8]" in invoke("inspect", prefix).stdout


def test_text_is_shown_as_it_is(invoke, tmp_path, tokenizer_directory):
    (tmp_path / "x.txt").write_text("[bold]no markup[/bold] :smile:")
    invoke(
        "prepare",
        tmp_path / "x.txt",
        "--tokenizer",
        tokenizer_directory,
        "--output",
        tmp_path / "o",
        "--workers",
        1,
    )
    assert "[bold]no markup[/bold] :smile:" in invoke("inspect", tmp_path / "o").stdout


def test_verify_says_what_is_wrong_and_where(invoke, write_pair):
    prefix = write_pair([[7, 8], [9]]).prefix
    result = invoke("verify", prefix, "--vocab-size", 9, code=1)
    assert "pair.bin: byte 4: token id 9 is not in the vocabulary of 9" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["prepare", "missing.jsonl", "--tokenizer", "BPE", "--output", "o"],
            "missing.jsonl: no such",
        ),
        (
            ["prepare", "empty.jsonl", "--tokenizer", "BPE", "--output", "o"],
            "empty.jsonl: is empty",
        ),
        (["prepare", "bad.jsonl", "--tokenizer", "BPE", "--output", "o"], "bad.jsonl: line 2: "),
        (["prepare", "good.jsonl", "--tokenizer", "nowhere", "--output", "o"], "nowhere: holds no"),
        (
            ["prepare", "good.jsonl", "--tokenizer", "BPE", "--output", "o", "--workers", "0"],
            "workers: ",
        ),
        (
            ["prepare", "good.jsonl", "--tokenizer", "BPE", "--output", "o", "--key", "x"],
            "no key 'x'",
        ),
        (
            ["prepare", "good.jsonl", "--tokenizer", "BPE", "--output", "bad.jsonl/o"],
            "a part of this path is a file",
        ),
        (["train-tokenizer", "good.jsonl", "--vocab-size", "9", "--output", "o"], "vocab_size: "),
        (["inspect", "nowhere"], "nowhere: is no prepared dataset"),
        (["inspect", "PREPARED", "--document", "100000"], "document: "),
        (["verify", "good.jsonl"], "good.jsonl: is no prepared dataset"),
    ],
)
def test_bad_input_is_one_paragraph(
    invoke, tmp_path, monkeypatch, tokenizer_directory, prepared, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text": \n')
    (tmp_path / "good.jsonl").write_text('{"text": "x"}\n')
    places = {"BPE": str(tokenizer_directory), "PREPARED": str(prepared)}
    result = invoke(*[places.get(argument, argument) for argument in arguments], code=1)
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.jsonl",
        "empty.jsonl",
        "good.jsonl",
    ]


def test_a_full_disk_and_what_may_not_be_read(
    invoke, tmp_path, corpus, tokenizer_directory, monkeypatch
):
    def fail(error):
        def raising(*_, **__):
            raise error

        monkeypatch.setattr("mtron_data.preparation.run.find_sources", raising)
        arguments = (
            "prepare",
            corpus,
            "--tokenizer",
            tokenizer_directory,
            "--output",
            tmp_path / "o",
        )
        return invoke(*arguments, code=1).stderr

    denied = PermissionError(13, "Permission denied", "secret.jsonl")
    expected = "error: secret.jsonl: Permission denied; check the path and its permissions\n"
    assert fail(denied) == expected
    assert (
        fail(OSError(28, "o: no space left while writing"))
        == "error: o: no space left while writing\n"
    )


def test_debug_shows_the_traceback(invoke):
    result = CliRunner().invoke(app, ["inspect", "nowhere", "--debug"])
    assert isinstance(result.exception, ValueError)


def test_help_has_examples(invoke):
    for command in ("train-tokenizer", "prepare", "inspect", "verify"):
        assert f"mtron-data {command}" in invoke(command, "--help").stdout


def test_the_installed_command(corpus, tokenizer_directory, tmp_path):
    """Several workers, from a real process without a terminal."""
    command = [
        sys.executable,
        "-c",
        "from mtron_data.cli import main; main()",
        "prepare",
        str(corpus),
        "--tokenizer",
        str(tokenizer_directory),
        "--output",
        str(tmp_path / "o"),
        "--workers",
        "2",
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert result.stderr == ""
    assert result.stdout.startswith(f"{tmp_path / 'o'}: written, ")
    assert json.loads((tmp_path / "o" / "manifest.json").read_text())["num_documents"]
