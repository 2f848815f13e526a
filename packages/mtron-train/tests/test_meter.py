import pytest

from mtron_train.meter import Meter
from mtron_train.progress import format_seconds
from mtron_train.step import StepResult


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_record_is_the_mean_since_the_last_one_and_counts_only_training_time():
    clock = Clock()
    meter = Meter(flops_per_token=6.0, peak_flops=1200.0, base_learning_rate=0.1, clock=clock)
    meter.start()
    meter.add(StepResult(loss=2.0, grad_norm=1.0, learning_rate_scale=0.5, tokens=100))
    clock.now += 1.0
    meter.stop()
    clock.now += 50.0  # a validation
    meter.start()
    meter.add(StepResult(loss=4.0, grad_norm=3.0, learning_rate_scale=1.0, tokens=100))
    clock.now += 1.0
    record = meter.record()
    assert record == {
        "loss/train": 3.0,
        "grad_norm": 2.0,
        "learning_rate": 0.1,
        "tokens_per_second": 100.0,
        "mfu": pytest.approx(0.5),
    }
    assert meter.seconds_per_step == 1.0
    meter.add(StepResult(loss=1.0, grad_norm=1.0, learning_rate_scale=1.0, tokens=100))
    clock.now += 2.0
    assert meter.record()["tokens_per_second"] == 50.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")]
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
