import json
from pathlib import Path

import numpy as np
import pytest

from mtron_ckpt import open as open_checkpoint
from mtron_train import assemble
from mtron_train.metrics import read_metrics


def bits(config):
    """Every array of the newest checkpoint of a run as raw bytes, and its state."""
    checkpoint = open_checkpoint(Path(config.run.directory) / "checkpoints")
    arrays = {name: np.asarray(checkpoint.read(name)).tobytes() for name in checkpoint.names()}
    return checkpoint.step, arrays, checkpoint.state


def losses(config):
    records = read_metrics(Path(config.run.directory))
    keys = ("loss/train", "loss/validation", "grad_norm", "learning_rate")
    return [{k: r[k] for k in ("step", *keys) if k in r} for r in records]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_20_and_resume_and_20_is_40_to_the_bit(configure, run_to, kind):
    straight = configure("straight", optim={"kind": kind})
    _, outcome = run_to(straight)
    assert outcome.finished

    parted = configure("parted", optim={"kind": kind})
    _, outcome = run_to(parted, stop_after=20)
    assert (outcome.step, outcome.finished) == (20, False)
    resumed, outcome = run_to(parted)
    assert resumed.resumed is not None and resumed.resumed.step == 20
    assert outcome.finished

    step, arrays, state = bits(parted)
    expected_step, expected_arrays, expected_state = bits(straight)
    assert step == expected_step == 40
    assert arrays.keys() == expected_arrays.keys()
    different = [name for name in arrays if arrays[name] != expected_arrays[name]]
    assert not different
    assert json.dumps(state, sort_keys=True) == json.dumps(expected_state, sort_keys=True)
    assert losses(parted) == losses(straight)


def test_training_learns(configure, run_to):
    config = configure(steps=60)
    _, outcome = run_to(config)
    first = losses(config)[0]["loss/train"]
    assert first == pytest.approx(np.log(300), abs=0.3)
    assert outcome.validation_loss < 0.6 * first


def test_micro_batches_do_not_change_the_numbers(configure, run_to):
    whole = configure("whole", steps=5, run={"dtype": "float64"}, data={"micro_batch_size": 8})
    split = configure("split", steps=5, run={"dtype": "float64"}, data={"micro_batch_size": 2})
    run_to(whole)
    run_to(split)
    for a, b in zip(losses(whole), losses(split), strict=True):
        assert a == pytest.approx(b, rel=1e-10)


def test_another_model_is_refused_by_name(configure, run_to):
    run_to(configure(steps=2))
    with pytest.raises(ValueError, match=r"model.hidden_dropout: .* 0.1, .* says 0.0"):
        assemble(configure(steps=4, model={"hidden_dropout": 0.0}))
    with pytest.raises(ValueError, match=r"run.dtype"):
        assemble(configure(steps=4, run={"dtype": "float64"}))


def test_more_steps_go_on_from_a_finished_run(configure, run_to):
    run_to(configure(steps=4))
    resumed, outcome = run_to(configure(steps=6))
    assert (resumed.resumed.step, outcome.step, outcome.finished) == (4, 6, True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(configure, run_to):
    config = configure(
        steps=40,
        optim={"kind": "adamw", "lr": 1e30, "clip_norm": 1.0},
        schedule={"kind": "constant", "warmup_steps": 0},
        checkpoint={"every_steps": 1},
    )
    with pytest.raises((FloatingPointError, ValueError), match="finite"):
        run_to(config)
    checkpoint = open_checkpoint(Path(config.run.directory) / "checkpoints")
    assert all(np.isfinite(checkpoint.read(name)).all() for name in checkpoint.names("param"))


def test_missing_and_unfit_datasets_are_named(configure, datasets, tmp_path):
    with pytest.raises(ValueError, match=r"data.train: .*nowhere"):
        assemble(configure(data={"train": str(tmp_path / "nowhere")}))
    with pytest.raises(ValueError, match=r"data.train: .* has 300 tokens, more than .* 200"):
        assemble(configure(model={"vocab_size": 200}))
