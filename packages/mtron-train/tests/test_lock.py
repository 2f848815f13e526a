import os
import signal
import subprocess
import sys

import pytest

from mtron_train import StopRequest
from mtron_train.lock import exclusive


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    code = "import sys, pathlib; from mtron_train.lock import exclusive\n"
    code += "with exclusive(pathlib.Path(sys.argv[1])): pass"
    with exclusive(tmp_path):
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert "another process is training in" in other.stderr
    with exclusive(tmp_path):
        pass  # free again


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"run.directory: .* cannot be written"),
        exclusive(tmp_path / "file" / "run"),
    ):
        pass


def test_the_first_signal_asks_and_the_second_ends():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
