import errno
import os

import pytest

from mtron_data.publish import published_directory


def write(target, text):
    with published_directory(target, replace=True) as directory:
        (directory / "file").write_text(text)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_appears_whole_and_replaces_whole(tmp_path):
    target = tmp_path / "a" / "b"
    for text in ("one", "two"):
        with published_directory(target, replace=True) as directory:
            (directory / "file").write_text(text)
            assert not target.exists() or (target / "file").read_text() == "one"
        assert (target / "file").read_text() == text
        assert names(target.parent) == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_what_was_there(tmp_path, error):
    write(tmp_path / "a", "one")
    with pytest.raises(error), published_directory(tmp_path / "a", replace=True) as directory:
        (directory / "file").write_text("half")
        raise error
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "one"


def test_leftovers_of_the_killed_are_removed(tmp_path):
    for name in (".a.partial", ".a.old"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text("half")
        (tmp_path / name / "file").write_text("half")
    with published_directory(tmp_path / "a", replace=True) as directory:
        assert names(directory) == []
        (directory / "new").write_text("x")
    write(tmp_path / "a", "two")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["file"]


def test_one_writer_at_a_time(tmp_path):
    with (
        published_directory(tmp_path / "a", replace=True),
        pytest.raises(ValueError, match="another process is writing it"),
        published_directory(tmp_path / "a", replace=True),
    ):
        pass
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_named(tmp_path):
    with (
        pytest.raises(OSError, match=r"a: no space left while writing") as caught,
        published_directory(tmp_path / "a", replace=True),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "a", tmp_path / "file" / "a" / "b"):
        with (
            pytest.raises(ValueError, match="a part of this path is a file"),
            published_directory(target, replace=True),
        ):
            pass


def test_what_appeared_meanwhile_is_kept(tmp_path):
    (tmp_path / "a").mkdir()
    with (
        pytest.raises(ValueError, match="appeared meanwhile"),
        published_directory(tmp_path / "a", replace=False) as directory,
    ):
        (directory / "file").write_text("late")
        (tmp_path / "a" / "file").write_text("early")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "early"
