import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

from mtron_parallel.testing import WorkerPool

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # as workers do: what they run is imported from files beside the tests

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def workers():
    """Processes for functions that need several ranks."""
    with WorkerPool(max_workers=4, preload=["mtron_parallel.model", "torch._dynamo"]) as pool:
        yield pool


@pytest.fixture(scope="session")
def tolerances():
    return SimpleNamespace(**runpy.run_path(str(HERE / "tolerances.py")))
