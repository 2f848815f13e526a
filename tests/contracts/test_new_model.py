"""What `tools/new_model.py` writes imports, passes the linter, and fails with what to do next."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import new_model
from repository import ROOT

TREE = ("pyproject.toml", "packages/mtron-models", "packages/mtron-ckpt")
NAMES = ("aardvark_2", "zebra")
"""The first and the last of every list."""

USE = """
import torch, mtron_ckpt, mtron_models
from mtron_ckpt.conversion.families import FAMILIES
for name in {names!r}:
    config = mtron_models.config_from_dict(dict(model_type=name, vocab_size=11, hidden_size=8,
        intermediate_size=12, num_hidden_layers=2, num_attention_heads=2))
    model = mtron_models.build(config, device="cpu").eval()
    mtron_models.initialize(model, 0)
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 11)
    assert mtron_models.num_parameters(config) == sum(p.numel() for p in model.parameters())
    tensors = FAMILIES[name].tensors(config.model_dump(), 100)
    assert tensors.ours == config.parameter_shapes()
    public = type(config).__name__
    print(mtron_models.__file__, public, public in mtron_models.__all__)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what families are made of, with two new ones."""
    root = tmp_path_factory.mktemp("tree")
    for path in TREE:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        copy(ROOT / path, root / path)
    for name in NAMES:
        assert new_model.find_problem(name, root) is None
        written = new_model.write_family(name, root)
        assert all((root / path).is_file() for path in written)
    return root


def run(root, *command):
    sources = [str(root / f"packages/mtron-{name}/src") for name in ("models", "ckpt")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sources), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True
    )


def test_a_new_family_is_a_model_that_runs(tree):
    found = run(tree, "-c", USE.format(names=NAMES))
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [line[1:] for line in lines] == [["Aardvark2Config", "True"], ["ZebraConfig", "True"]]
    assert all(Path(line[0]).is_relative_to(tree) for line in lines)


def test_a_new_family_passes_the_linter(tree):
    new = [path for name in NAMES for path in new_model.new_files(name) if path.endswith(".py")]
    lists = [f"{new_model.MODELS}/registry.py", f"{new_model.MODELS}/__init__.py"]
    lists.append(f"{new_model.FAMILIES}/__init__.py")
    for command in (("check", *new, *lists), ("format", "--check", *new)):
        found = run(tree, "-m", "ruff", *command, "--no-cache")
        assert found.returncode == 0, found.stdout


def test_the_tests_of_a_new_family_say_what_to_do(tree):
    found = run(
        tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/families/test_zebra_family.py"
    )
    assert "7 failed" in found.stdout, found.stdout + found.stderr
    for step in range(1, 7):
        assert f"Failed: Step {step}: " in found.stdout
    assert "packages/mtron-models/src/mtron_models/zebra/config.py: give it the fields" in (
        found.stdout
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama", "there is a family 'llama' already"),
        ("layers", "packages/mtron-models/src/mtron_models/layers is there already"),
        ("losses", "packages/mtron-models/src/mtron_models/losses.py is there already"),
        ("zebra", "there is a family 'zebra' already"),
        *(
            (bad, "must be the model_type")
            for bad in ("", "New", "new-model", "2d", "class", "a__b")
        ),
    ],
)
def test_a_name_that_is_refused(tree, name, message):
    assert message in new_model.find_problem(name, tree)
