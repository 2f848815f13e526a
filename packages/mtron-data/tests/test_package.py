import subprocess
import sys

import pytest

import mtron_data

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name, name="torch")
sys.meta_path.insert(0, Refuse())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_every_public_name_resolves_also_after_all_modules_were_imported():
    # A module named like an exported function would take its place in the package.
    code = """
import importlib, pkgutil, types
import mtron_data
for module in pkgutil.walk_packages(mtron_data.__path__, "mtron_data."):
    if module.name != "mtron_data.torch_io":
        importlib.import_module(module.name)
from mtron_data import *
for name in mtron_data.__all__:
    assert not isinstance(globals()[name], types.ModuleType), name
    assert globals()[name].__name__ == name, name
"""
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert sorted(mtron_data.__all__) == mtron_data.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mtron_data.nothing


def test_import_loads_nothing_heavy():
    code = """
import sys
import mtron_data
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "numpy", "tokenizers", "pydantic", "rich"}, loaded
"""
    assert run(code).returncode == 0


def test_torch_is_never_imported(prepared, corpus, tokenizer_directory, tmp_path):
    code = f"""{WITHOUT_TORCH}
import os
from mtron_data import *
from mtron_data.cli import app
corpus, tokenizer, data, output = sys.argv[1:]
prepare(corpus, tokenizer, output)
loader = Loader(GPTDataset(data, 32, seed=1), 4)
next(loader)
loader.close()
assert verify(output).ok
for arguments in (["--help"], ["prepare", "--help"], ["inspect", data]):
    try:
        app(arguments)
    except SystemExit as end:
        assert not end.code
assert "torch" not in sys.modules
try:
    import mtron_data.torch_io
except ModuleNotFoundError as error:
    assert "mtron-data[torch]" in str(error)
else:
    raise AssertionError("torch_io was imported without torch")
"""
    result = run(code, str(corpus), str(tokenizer_directory), str(prepared), str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
