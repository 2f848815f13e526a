"""Importing a package, reading its configuration and asking for help loads no torch.

One process tries everything in turn, and says after which step torch was there.
"""

import json
import subprocess
import sys

from repository import PACKAGES, import_name, list_files

PROBE = """
import contextlib, importlib, io, json, sys

steps = json.loads(sys.argv[1])
loaded = []
for kind, module in steps:
    if "torch" in sys.modules:
        break
    if kind == "import":
        importlib.import_module(module)
    else:
        sys.argv = [module, "--help"]
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            try:
                importlib.import_module(module).main()
            except SystemExit as exit:
                assert not exit.code, exit.code
        assert "Usage" in shown.getvalue()
    if "torch" in sys.modules:
        loaded.append(f"{kind} {module}")
print(json.dumps(loaded))
"""


def run_probe(steps):
    finished = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(steps)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def modules_named(*names):
    """Modules of the packages whose last name is one of these."""
    for path in list_files(".py"):
        if path.stem in names and "src" in path.parts:
            yield ".".join(path.with_suffix("").parts[path.parts.index("src") + 1 :])


def test_packages():
    assert run_probe([("import", import_name(package)) for package in PACKAGES]) == []


def test_configuration():
    steps = [("import", module) for module in modules_named("config")]
    assert len(steps) >= 5
    assert run_probe(steps) == []


def test_help():
    steps = [("help", module) for module in modules_named("cli")]
    assert len(steps) == 5
    assert run_probe(steps) == []


def test_probe_notices_torch():
    """The probe itself: importing a module that needs torch is reported."""
    assert run_probe([("import", "json"), ("import", "torch")]) == ["import torch"]
