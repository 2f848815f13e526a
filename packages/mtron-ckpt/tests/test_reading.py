import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mtron_ckpt
from mtron_ckpt import IncompleteCheckpoint
from mtron_ckpt.manifest import dump_commit
from mtron_ckpt.storage import read_at


@pytest.fixture
def checkpoint(tmp_path, save, values, small_chunks):
    return mtron_ckpt.open(save(tmp_path / "root", values(0)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_block_is_that_block(checkpoint, values, same, data):
    name, value = data.draw(st.sampled_from(list(values(0).items())))
    block = []
    for extent in value.shape[: data.draw(st.integers(0, value.ndim))]:
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, extent)] * 2)))
        block.append(slice(data.draw(st.sampled_from([start, None])), stop))
    assert same(checkpoint.read(name, tuple(block)), value[tuple(block)])


def test_only_the_chunks_that_a_block_touches_are_read(checkpoint, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "mtron_ckpt.reading.read_at", lambda *a: (reads.append(len(a[1])), read_at(*a))[1]
    )
    checkpoint.read("param/embed.weight", (slice(0, 1),))
    assert len(reads) == 1
    assert reads[0] <= 4096


@pytest.mark.parametrize(
    "block",
    [
        (slice(0, 301),),
        (slice(-1, None),),
        (slice(0, 10, 2),),
        (slice(5, 3),),
        (slice(None), slice(None), slice(None)),
    ],
)
def test_blocks_that_are_not_in_the_array_are_refused(checkpoint, block):
    with pytest.raises(ValueError, match=r"param/embed\.weight: the block"):
        checkpoint.read("param/embed.weight", block)


def test_an_unknown_array_is_named_with_a_suggestion(checkpoint):
    for call in (checkpoint.read, checkpoint.info):
        with pytest.raises(ValueError, match=r"embd.*did you mean param/embed\.weight"):
            call("param/embd.weight")


def test_names_by_kind(checkpoint, values):
    assert checkpoint.names() == list(values(0))
    assert checkpoint.names("exp_avg") == ["exp_avg/embed.weight", "exp_avg/norm.weight"]
    assert checkpoint.names("exp") == []


def test_the_newest_step_of_a_root_is_opened(tmp_path, save, values):
    for step in (20, 100000000, 3):
        save(tmp_path, values(0), step)
    assert mtron_ckpt.open(str(tmp_path)).step == 100000000
    assert mtron_ckpt.open(tmp_path / "step-00000003").step == 3


def test_a_step_may_be_moved_away_and_renamed(tmp_path, save, values, same):
    path = save(tmp_path, values(0)).rename(tmp_path / "best")
    assert same(mtron_ckpt.open(path).read("param/norm.weight"), values(0)["param/norm.weight"])
    assert mtron_ckpt.verify(path).ok


def test_an_open_checkpoint_survives_the_deletion_of_its_step(tmp_path, save, values, same):
    path = save(tmp_path, values(0))
    checkpoint = mtron_ckpt.open(path)
    checkpoint.read("param/norm.weight")
    mtron_ckpt.steps.delete_step(path)
    for name, value in values(0).items():
        assert same(checkpoint.read(name), value)


def test_what_is_no_checkpoint_is_said_so(tmp_path, save, values):
    with pytest.raises(FileNotFoundError, match="nothing: no such checkpoint"):
        mtron_ckpt.open(tmp_path / "nothing")
    with pytest.raises(IncompleteCheckpoint, match="not a checkpoint"):
        mtron_ckpt.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(IncompleteCheckpoint, match="not a checkpoint"):
        mtron_ckpt.open(tmp_path / "file")
    path = save(tmp_path / "root", values(0))
    (path / "COMMIT").unlink()
    for where in (path, tmp_path / "root"):
        with pytest.raises(IncompleteCheckpoint):
            mtron_ckpt.open(where)


def test_a_step_without_commit_does_not_exist_but_a_damaged_one_is_not_passed_over(
    tmp_path, save, values
):
    save(tmp_path, values(0), 1)
    newest = save(tmp_path, values(0), 2)
    commit = (newest / "COMMIT").read_bytes()
    (newest / "COMMIT").unlink()
    assert mtron_ckpt.open(tmp_path).step == 1
    (newest / "COMMIT").write_bytes(commit[:-3])
    with pytest.raises(mtron_ckpt.CorruptCheckpoint, match="step-00000002"):
        mtron_ckpt.open(tmp_path)


def rewrite(path, change):
    """Change MANIFEST.json and commit it anew, as another version of the software might."""
    manifest = json.loads((path / "MANIFEST.json").read_text())
    change(manifest)
    content = json.dumps(manifest).encode()
    (path / "MANIFEST.json").write_bytes(content)
    return content


def test_another_format_version_is_refused_with_the_remedy(tmp_path, save, values):
    path = save(tmp_path, values(0))
    content = rewrite(path, lambda manifest: manifest.update(version=2))
    commit = dump_commit(content).replace(b"checkpoint 1\n", b"checkpoint 2\n")
    (path / "COMMIT").write_bytes(commit)
    for call in (mtron_ckpt.open, mtron_ckpt.verify):
        with pytest.raises(ValueError, match="format version 2, this mtron-ckpt reads version 1"):
            call(path)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "data/../../x", "a//b", ""])
def test_a_manifest_cannot_point_outside(tmp_path, save, values, name):
    path = save(tmp_path, values(0))

    def change(manifest):
        manifest["files"][0]["path"] = name
        manifest["data"] = [name]

    (path / "COMMIT").write_bytes(dump_commit(rewrite(path, change)))
    with pytest.raises(mtron_ckpt.CorruptCheckpoint, match="malformed"):
        mtron_ckpt.open(path)


def test_a_file_without_a_record_is_not_read(tmp_path, save, values):
    path = save(tmp_path, values(0))
    content = rewrite(path, lambda m: m["files"].pop(0))
    (path / "COMMIT").write_bytes(dump_commit(content))
    with pytest.raises(mtron_ckpt.CorruptCheckpoint, match="not listed among the files"):
        mtron_ckpt.open(path)


def test_many_threads_may_read_at_once(checkpoint, values):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        for name, read in pool.map(lambda n: (n, checkpoint.read(n)), list(values(0)) * 5):
            assert np.array_equal(read, values(0)[name])
