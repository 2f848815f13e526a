import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "standard_library.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the package stands alone")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("standard_library", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_this_python(example, tmp_path, capsys):
    assert example.main([str(tmp_path / "corpus")]) == 0
    train, heldout = (read(tmp_path / "corpus" / f"{name}.jsonl") for name in ("train", "heldout"))
    total = example.num_bytes(train) + example.num_bytes(heldout)
    assert total > example.LEAST_BYTES
    assert 0.02 < len(heldout) / (len(train) + len(heldout)) < 0.09
    paths = [document["path"] for document in train + heldout]
    assert len(set(paths)) == len(paths)
    assert {"argparse.py", "json/decoder.py"} < set(paths)
    skipped = ("test", "tests", "site-packages", "idle_test", "__pycache__")
    assert not [path for path in paths if set(path.split("/")[:-1]) & set(skipped)]
    first = {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    assert sorted(first) == ["heldout.jsonl", "train.jsonl"]
    assert example.main([str(tmp_path / "corpus")]) == 0
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    assert "train.jsonl" in capsys.readouterr().out


def test_what_is_collected(example, tmp_path):
    files = {
        "b.py": b"b = 1\n",
        "a/z.py": b"z\r\n",
        "a.py": "ä".encode(),
        "empty.py": b"",
        "latin.py": b"\xe4",
        "notes.txt": b"x",
        "test/x.py": b"x",
        "a/tests/x.py": b"x",
        "site-packages/x.py": b"x",
        "sitecustomize.py": b"x",
        "_sysconfigdata__linux_.py": b"x",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link.py").symlink_to(tmp_path / "b.py")
    assert list(example.collect(tmp_path)) == [
        ("a.py", "ä"),
        ("a/z.py", "z\r\n"),
        ("b.py", "b = 1\n"),
    ]


def test_the_choice_is_by_the_path_and_never_changes(example):
    paths = [f"package/module_{i}.py" for i in range(4000)]
    heldout = [path for path in paths if example.is_heldout(path)]
    assert 0.035 < len(heldout) / len(paths) < 0.065
    assert heldout[:3] == ["package/module_3.py", "package/module_64.py", "package/module_65.py"]


def test_no_sources(example, tmp_path, monkeypatch, capsys):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "os.py").write_text("x")
    (tmp_path / "python.zip").write_text("x")
    monkeypatch.setattr(example.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "python.zip")])
    assert example.main([str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    for word in ("apt install", "conda", "pyenv", "zipped in"):
        assert word in message
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(example, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert example.main([str(tmp_path / "file" / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
