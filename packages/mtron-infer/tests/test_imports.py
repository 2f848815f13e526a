import json
import subprocess
import sys

import pytest

import mtron_infer

PROBE = """
import contextlib, importlib, io, sys
importlib.import_module(sys.argv[1])
if sys.argv[1].endswith("cli"):
    for arguments in (["--help"], ["generate", "--help"], ["serve", "--help"]):
        sys.argv = ["mtron-infer", *arguments]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            importlib.import_module("mtron_infer.cli").main()
heavy = {"torch", "fastapi", "uvicorn", "transformers"} & set(sys.modules)
print(sorted(heavy))
"""


@pytest.mark.parametrize("module", ["mtron_infer", "mtron_infer.config", "mtron_infer.cli"])
def test_nothing_heavy_is_loaded(module):
    shown = subprocess.check_output([sys.executable, "-c", PROBE, module], text=True)
    assert shown.splitlines()[-1] == "[]"


def test_all_names_resolve():
    assert all(getattr(mtron_infer, name) for name in mtron_infer.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = mtron_infer.nothing


def test_configs_describe_every_field():
    for name in ("EngineConfig", "SamplingParams", "ServerConfig"):
        schema = getattr(mtron_infer, name).model_json_schema()
        assert all(field["description"] for field in schema["properties"].values()), json.dumps(
            schema
        )


def test_contradictory_limits_are_refused():
    with pytest.raises(ValueError, match="max_batch_tokens: 4 is less than max_batch_size = 8"):
        mtron_infer.EngineConfig(max_batch_size=8, max_batch_tokens=4)
