import subprocess
import sys

import pytest

import mtron_eval


@pytest.mark.parametrize(
    "code",
    [
        "import mtron_eval",
        "import mtron_eval.config",
        "import mtron_eval.cli",
        "from mtron_eval import evaluate",
    ],
)
def test_no_torch_is_imported(code):
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_every_public_name_resolves():
    for name in mtron_eval.__all__:
        assert getattr(mtron_eval, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mtron_eval.nothing
