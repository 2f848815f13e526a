import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mtron_eval.cli import app


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(checkpoint, data, *more):
    return call("run", checkpoint, "--tasks", "perplexity", "--data", data, *more)


def refused(result, *parts):
    """Asserts a one-paragraph error that has all of `parts`, and nothing on standard output."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_a_run_prints_a_table_and_writes_json(checkpoint, write_jsonl, tmp_path):
    data = write_jsonl({"text": "the quick fox"}, {"text": "a lazy dog"})
    result = run(checkpoint, data, "--output", tmp_path / "out", "--batch-size", 2)
    assert result.exit_code == 0, result.stderr
    assert "bits_per_byte" in result.stdout
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    metrics = content["tasks"]["perplexity"]["metrics"]
    assert f"{metrics['perplexity']['value']:.4f}" in result.stdout
    assert content["config"]["data"] == [str(data)]


def test_existing_results_are_kept_unless_asked(checkpoint, write_jsonl, tmp_path):
    data = write_jsonl({"text": "the quick fox"})
    file = tmp_path / "results.json"
    file.write_text("old")
    refused(run(checkpoint, data, "--output", tmp_path), str(file), "--overwrite")
    assert file.read_text() == "old"
    assert run(checkpoint, data, "--output", tmp_path, "--overwrite").exit_code == 0
    assert json.loads(file.read_text())["results_version"] == 1


def test_a_full_disk_does_not_cost_the_numbers(checkpoint, write_jsonl, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    data = write_jsonl({"text": "the quick fox"})
    monkeypatch.setattr("mtron_eval.results.os.fsync", fail)
    result = run(checkpoint, data, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "bits_per_byte" in result.stdout
    assert "No space left" in result.stderr
    assert not any((tmp_path / "out").iterdir())


def test_bad_requests_are_one_paragraph(checkpoint, write_jsonl, tmp_path):
    data = write_jsonl({"text": "the quick fox"})
    refused(run(checkpoint, tmp_path / "no.jsonl"), "no.jsonl", "no such file")
    refused(run(checkpoint, data, "--stride", 33), "stride", "31", "got 33")
    refused(run(checkpoint, data, "--context", 0), "context", "got 0")
    refused(run(checkpoint, data, "--context", 64), "context", "at most 31")
    refused(run(checkpoint, data, "--device", "abacus"), "device", "abacus")
    refused(run(checkpoint, data, "--output", data), "not a directory")
    refused(run(tmp_path / "nowhere", data), "nowhere")
    refused(run(tmp_path, data), str(tmp_path))
    misspelt = call("run", checkpoint, "--tasks", "perplexity,perplexty", "--data", data)
    refused(misspelt, "unknown task", "did you mean perplexity?")
    refused(call("run", checkpoint, "--tasks", "", "--data", data), "tasks")


def test_a_damaged_checkpoint_is_refused(checkpoint, write_jsonl, tmp_path):
    data = write_jsonl({"text": "the quick fox"})
    root = tmp_path / "root"
    shutil.copytree(checkpoint, root)
    largest = max(root.rglob("*.zip"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    out = tmp_path / "out"
    refused(run(root, data, "--output", out), largest.name)
    assert not (out / "results.json").exists()


def test_debug_shows_the_traceback(tmp_path):
    result = run(tmp_path, tmp_path / "no.jsonl", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_list_names_the_tasks():
    result = call("list")
    assert result.exit_code == 0
    assert result.stdout.startswith("perplexity ")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"]])
def test_help_is_quick_and_needs_no_torch(arguments):
    command = Path(sys.executable).with_name("mtron-eval")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([command, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which does not depend on what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
