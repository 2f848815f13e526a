from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mtron_optim import ScheduleConfig, learning_rate_scale

KINDS = ("constant", "linear", "cosine", "wsd")


@st.composite
def schedules(draw):
    total = draw(st.integers(1, 3000))
    kind = draw(st.sampled_from(KINDS))
    fraction = draw(st.floats(0.01, 1.0))
    longest = total - 1 if kind != "wsd" else total - max(1, round(total * fraction))
    return ScheduleConfig(
        kind=kind,
        total_steps=total,
        warmup_steps=draw(st.integers(0, max(0, longest))),
        min_ratio=draw(st.floats(0, 1)),
        decay=draw(st.sampled_from(("linear", "cosine", "sqrt"))),
        decay_fraction=fraction,
    )


@given(schedules())
def test_it_rises_stays_and_falls_to_the_end(schedule):
    total, warmup = schedule.total_steps, schedule.warmup_steps
    values = [learning_rate_scale(schedule, step) for step in range(total + 2)]
    rise, rest = values[:warmup], values[warmup:total]
    assert rise == sorted(rise)
    assert all(value > 0 for value in rise)
    assert rest == sorted(rest, reverse=True)
    assert rest[0] == 1.0
    if warmup:
        assert rise[-1] == 1.0
    low = min(1.0, schedule.min_ratio)
    assert all(low - 1e-12 <= value <= 1 for value in rest)
    if schedule.kind != "constant":
        assert values[total] == values[total + 1] == schedule.min_ratio


@given(schedules())
def test_neighbouring_steps_differ_little(schedule):
    total, warmup = schedule.total_steps, schedule.warmup_steps
    values = [learning_rate_scale(schedule, step) for step in range(total + 1)]
    length = max(1, total - warmup if schedule.kind != "wsd" else total * schedule.decay_fraction)
    steepest = max(2.0 / length, (1.5 / length) ** 0.5) + 1 / max(1, warmup)
    assert all(abs(b - a) <= steepest for a, b in pairwise(values))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_equal_to_torch(kind):
    total, floor = 50, 0.1
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = {
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, floor, total),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, floor),
    }[kind]()
    ours = ScheduleConfig(kind=kind, total_steps=total, min_ratio=floor)
    for step in range(total + 1):
        assert learning_rate_scale(ours, step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_wsd_by_hand():
    schedule = ScheduleConfig(kind="wsd", total_steps=100, warmup_steps=4, decay_fraction=0.25)
    values = {step: learning_rate_scale(schedule, step) for step in (0, 3, 4, 75, 79, 84, 91, 100)}
    assert values == pytest.approx(
        {0: 0.25, 3: 1.0, 4: 1.0, 75: 1.0, 79: 0.6, 84: 0.4, 91: 0.2, 100: 0.0}
    )
    linear = schedule.model_copy(update={"decay": "linear"})
    assert learning_rate_scale(linear, 80) == pytest.approx(0.8)
    cosine = schedule.model_copy(update={"decay": "cosine"})
    assert learning_rate_scale(cosine, 75 + 25 // 2) == pytest.approx(0.53139, abs=1e-5)


def test_the_length_of_the_run_is_filled_in_and_needed():
    schedule = ScheduleConfig(kind="cosine", warmup_steps=5)
    assert learning_rate_scale(schedule, 2) == pytest.approx(0.6)
    with pytest.raises(ValueError, match=r"schedule\.total_steps"):
        learning_rate_scale(schedule, 5)
    assert schedule.resolve(30).total_steps == 30
    assert schedule.resolve(30).resolve(40).total_steps == 30
    with pytest.raises(ValidationError, match="warmup_steps"):
        ScheduleConfig(kind="wsd", warmup_steps=90).resolve(100)
    assert learning_rate_scale(ScheduleConfig(kind="constant"), 10**6) == 1.0
