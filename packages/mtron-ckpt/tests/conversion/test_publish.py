import errno
import signal
import subprocess
import sys

import pytest

from mtron_ckpt.conversion import publish
from mtron_ckpt.conversion.publish import check_destination, publish_directory


def fill(directory, text):
    with publish_directory(directory) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "file").write_text(text)
        assert not (directory / "sub").exists() or (directory / "sub" / "file").read_text() != text


def cannot_exchange(*_):
    raise OSError(errno.ENOSYS, "not on this system")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_appears_whole(tmp_path):
    fill(tmp_path / "deep" / "out", "new")
    assert (tmp_path / "deep" / "out" / "sub" / "file").read_text() == "new"
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_old_one_is_replaced(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(publish, "exchange", cannot_exchange)
    fill(tmp_path / "out", "old")
    (tmp_path / "out" / "more").write_text("old")
    fill(tmp_path / "out", "new")
    assert (tmp_path / "out" / "sub" / "file").read_text() == "new"
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["sub"]


def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path):
    fill(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), publish_directory(tmp_path / "out") as staging:
        (staging / "file").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "sub" / "file").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_the_old_one_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    monkeypatch.setattr(publish, "exchange", cannot_exchange)
    rename = publish.Path.rename

    def failing(self, target):
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(publish.Path, "rename", failing)
    with pytest.raises(OSError, match="broken"):
        fill(tmp_path / "out", "new")
    assert (tmp_path / "out" / "sub" / "file").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_destinations_are_checked(tmp_path):
    check_destination(tmp_path / "new", False, lambda _: False)
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty", False, lambda _: False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a directory"):
        check_destination(tmp_path / "file", True, lambda _: True)
    with pytest.raises(ValueError, match=r"already exists.*--overwrite"):
        check_destination(tmp_path, False, lambda _: True)
    with pytest.raises(ValueError, match="is not a checkpoint and will not be replaced"):
        check_destination(tmp_path, True, lambda _: False)
    check_destination(tmp_path, True, lambda _: True)


def test_a_link_that_leads_nowhere_is_no_destination(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a directory"):
        check_destination(tmp_path / "link", True, lambda _: True)


def test_no_space_says_what_to_do_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(OSError, match=r"out: no space left, nothing was written; free some"),
        publish_directory(tmp_path / "out") as staging,
    ):
        (staging / "file").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_a_killed_process_leaves_nothing_under_the_name(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from mtron_ckpt.conversion.publish import publish_directory\n"
        "with publish_directory(Path(sys.argv[1])) as staging:\n"
        "    (staging / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith("out.tmp-")
