"""A checkpoint of any layout loads on any other, to the bit, and training goes on as if unmoved."""

import pytest
from layouts import LAYOUTS, ONE
from resharding import resume, same_bits, save_after
from test_layouts import configured, small
from tolerances import FP64

from mtron_ckpt import open as open_checkpoint
from mtron_ckpt import verify

STEPS, MORE = 3, 2
EVERY = [ONE, *LAYOUTS]
FEW = [ONE, *(x for x in LAYOUTS if x.name in ("dp2-zero2", "tp2-sp-dp2-zero1"))]
"""For `make test`; the slow tests take every ordered pair."""
EACH = pytest.mark.parametrize(
    "layout",
    [pytest.param(x, marks=[] if x in FEW else pytest.mark.slow) for x in EVERY],
    ids=lambda layout: layout.name,
)


def call(workers, layout, function, *arguments):
    if layout.world_size == 1:
        return [function(*arguments)]
    return workers.run(function, layout.world_size, *arguments, timeout_seconds=300)


@pytest.fixture(scope="module")
def saved(workers, corpus, tmp_path_factory):
    """A function that returns the directory of a run saved on a layout after a few steps."""
    root = tmp_path_factory.mktemp("saved")

    def directory(layout):
        path = root / layout.name
        if not path.exists():
            data = configured(small(corpus), layout, path, "float64")
            call(workers, layout, save_after, data, STEPS)
        return path

    return directory


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory):
    """The losses of one process that goes on without a stop."""
    data = configured(small(corpus), ONE, tmp_path_factory.mktemp("straight"), "float64")
    return save_after(data, STEPS + MORE)


def arrays_of(directory, step=STEPS):
    checkpoint = open_checkpoint(directory / "checkpoints")
    assert checkpoint.step == step
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def check_loading(workers, corpus, saved, straight, tmp_path, layout, sources):
    data = configured(small(corpus), layout, tmp_path, "float64")
    directories = [saved(source) for source in sources]
    ranks = call(workers, layout, resume, data, [str(path) for path in directories], MORE)
    for number, directory in enumerate(directories):
        arrays, held = arrays_of(directory), set()
        for continued in (rank[number] for rank in ranks):
            assert continued.step == STEPS
            assert same_bits(continued.loaded, arrays) == [], directory.name
            assert continued.losses == pytest.approx(straight[STEPS:], abs=FP64.loss, rel=0)
            held |= continued.loaded.keys()
        assert held == arrays.keys()


@pytest.mark.parametrize("layout", FEW, ids=lambda layout: layout.name)
def test_checkpoints_of_other_layouts_load(workers, corpus, saved, straight, tmp_path, layout):
    check_loading(workers, corpus, saved, straight, tmp_path, layout, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("layout", EVERY, ids=lambda layout: layout.name)
def test_checkpoints_of_every_layout_load(workers, corpus, saved, straight, tmp_path, layout):
    check_loading(workers, corpus, saved, straight, tmp_path, layout, EVERY)


@EACH
def test_the_same_layout_resumes_to_the_bit(workers, corpus, saved, tmp_path, layout):
    data = configured(small(corpus), layout, tmp_path / "straight", "float64")
    call(workers, layout, save_after, data, STEPS + MORE)
    arrays = arrays_of(tmp_path / "straight", STEPS + MORE)
    for (continued,) in call(workers, layout, resume, data, [str(saved(layout))], MORE):
        assert same_bits(continued.final, arrays) == []


@EACH
def test_a_checkpoint_is_whole_and_has_no_padding(saved, layout):
    assert verify(saved(layout) / "checkpoints").ok
    arrays, expected = arrays_of(saved(layout)), arrays_of(saved(ONE))
    assert {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in expected.items()}
    assert arrays["param/embed.weight"].shape == (517, 48)
