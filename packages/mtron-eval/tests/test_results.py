import json

import pytest
from rich.console import Console

from mtron_eval import evaluate
from mtron_eval.report import print_results


@pytest.fixture
def results(uniform_scorer, write_jsonl):
    data = write_jsonl({"text": "one", "domain": "[bold]a"}, {"text": "three", "path": "x.py"})
    return evaluate(uniform_scorer, ["perplexity"], [data])


def test_the_json_file_has_everything(results, tmp_path):
    path = results.save(tmp_path / "out")
    assert path == tmp_path / "out" / "results.json"
    content = json.loads(path.read_text())
    assert content["results_version"] == 1
    assert content["config"]["stride"] == 8
    assert content["environment"]["packages"]["mtron-eval"]
    assert len(content["data"][0]["sha256"]) == 64
    task = content["tasks"]["perplexity"]
    assert task["version"] == 1
    assert task["counts"]["tokens"] == 8
    assert task["documents"][1]["path"] == "x.py"
    assert task["documents"][1]["bits_per_byte"] == pytest.approx(8.0056, abs=1e-3)
    assert list((tmp_path / "out").iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(results, tmp_path, monkeypatch):
    path = results.save(tmp_path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        results.save(tmp_path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "results.json"]


def test_the_table_is_plain_text_away_from_a_terminal(results, capsys):
    print_results(results, Console())
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u2500" not in printed
    assert "[bold]a" in printed
    assert any(
        line.split()[:3] == ["all", "perplexity", "257.0000"] for line in printed.splitlines()
    )
    assert "8 tokens" in printed
