"""The repository's own checks refuse what they are there to refuse."""

import subprocess
import sys
from pathlib import Path

import pytest

import check_imports
import check_size
import check_text
import run_tests
from documents import Block, read_commands
from repository import ROOT


def long_function(lines, name="step"):
    return f"def {name}():\n" + "    pass\n" * (lines - 1)


def test_size_limits():
    sources = {"at.py": long_function(60), "over.py": long_function(61), "long.py": "x = 1\n" * 401}
    problems = check_size.find_problems(sources, {})
    assert [problem.partition(": ")[0] for problem in problems] == ["over.py:step", "long.py"]


def test_size_counts_methods_and_inner_functions():
    inner = "".join(f"    {line}\n" for line in long_function(61).splitlines())
    problems = check_size.find_problems({"a.py": f"class Loop:\n{inner}"}, {})
    assert [problem.partition(": ")[0] for problem in problems] == ["a.py:Loop.step"]


def test_size_exceptions():
    sources = {"over.py": long_function(61)}
    reason = {"over.py:step": "A table that reads best whole."}
    assert check_size.find_problems(sources, reason) == []
    (short,) = check_size.find_problems(sources, {"over.py:step": "long"})
    assert "needs a reason" in short
    (stale,) = check_size.find_problems({"over.py": "x = 1\n"}, reason)
    assert "no longer needed" in stale


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from mtron_ckpt import save", None),
        ("from mtron_ckpt.torch_io import to_torch", None),
        ("import mtron_ckpt\nmtron_ckpt.save()", None),
        ("from mtron_train.anything import own", None),
        ("import numpy.random", None),
        ("from mtron_ckpt.store import save", "mtron_ckpt.store is private"),
        ("import mtron_ckpt.store", "mtron_ckpt.store is private"),
        ("from mtron_ckpt import store", "store is not in mtron_ckpt.__all__"),
        ("import mtron_ckpt\nmtron_ckpt.store", "store is not in mtron_ckpt.__all__"),
    ],
)
def test_only_public_names_across_packages(source, wrong):
    found = check_imports.find_problems(source, "mtron_train", lambda _: frozenset({"save"}))
    problems = [problem for _, problem in found]
    assert bool(problems) == bool(wrong)
    assert not wrong or wrong in problems[0]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("# TO~DO later", "unfinished"),
        ("cd /wor~k/here", "one machine"),
        ('Path("/tm~p/x")', "one machine"),
        ("pip install --extra~-index-url x", "package index"),
        ("https://py~pi.org/simple", "package index"),
        ("the todo of a name, ./work/x, $HOME/x, https://example.org/tmp/x", None),
    ],
)
def test_text(text, wrong):
    """The tildes keep this file itself from being refused."""
    problems = [problem for _, problem in check_text.find_problems(text.replace("~", ""))]
    assert bool(problems) == bool(wrong)
    assert not wrong or wrong in problems[0]


def test_layers_are_checked(tmp_path):
    """import-linter refuses a package of layer 0 that imports another."""
    for name, source in {"mtron_ckpt": "import mtron_data\n", "mtron_data": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
    contract = "type = layers\nlayers =\n    mtron_ckpt | mtron_data\n"
    config = tmp_path / "contracts.ini"
    config.write_text(
        "[importlinter]\nroot_packages =\n    mtron_ckpt\n    mtron_data\n"
        f"[importlinter:contract:layers]\nname = layers\n{contract}"
    )
    command = [Path(sys.executable).parent / "lint-imports", "--config", config, "--no-cache"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "mtron_ckpt is not allowed to import mtron_data" in refused.stdout


def test_shell_commands_are_found():
    code = (
        "# a comment\n"
        "CUDA_VISIBLE_DEVICES= mtron-data prepare a.jsonl \\\n  --workers 2 | tee log && ls\n"
    )
    assert list(read_commands(Block(1, "sh", code))) == [
        ["mtron-data", "prepare", "a.jsonl", "--workers", "2"],
        ["tee", "log"],
        ["ls"],
    ]
    console = Block(1, "console", "$ make test\n5 passed, 0 failed\n")
    assert list(read_commands(console)) == [["make", "test"]]


def test_every_slow_test_has_its_turn():
    """Over the six shares each suite gets each of its own six shares once."""
    plans = [run_tests.plan_suites(["mtron-ckpt", "mtron-data"], True, k) for k in range(1, 7)]
    for place in (0, 1):
        options = {plan[place].selection[-1] for plan in plans}
        assert options == {f"--share={k}/6" for k in range(1, 7)}
    assert run_tests.choose_share("3/6") == 3
    assert run_tests.choose_share("auto") in range(1, 7)
    with pytest.raises(SystemExit, match="expected auto or K/6"):
        run_tests.choose_share("7/6")


def test_shares_are_disjoint_and_complete(tmp_path):
    """pytest --share: the six shares together are the whole, without overlap."""
    (tmp_path / "test_seven.py").write_text("".join(f"def test_{n}(): ...\n" for n in range(7)))
    seen = []
    for k in (1, 2, 3):
        command = [sys.executable, "-m", "pytest", "-q", "--collect-only", f"--share={k}/3"]
        command += ["-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", tmp_path]
        command += ["-p", "conftest", f"--rootdir={ROOT}"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seen += [line.partition("::")[2] for line in listed.stdout.splitlines() if "::" in line]
    assert sorted(seen) == [f"test_{n}" for n in range(7)]
