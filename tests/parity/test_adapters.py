"""Adapters and options of the loss give on every layout what they give in one process."""

import pytest
from adapted import adapted_step
from layouts import DATA, TENSOR, largest_gradient_error, whole
from tolerances import FP64


@pytest.fixture(scope="module")
def one_process():
    return adapted_step({})


@pytest.mark.parametrize(
    "parallel",
    [*TENSOR.values(), {**TENSOR["tp2-sp"], **DATA["zero2"]}],
    ids=["tp2", "tp2-sp", "tp2-sp-dp2-zero2"],
)
def test_gradients_of_adapters_are_those_of_one_process(workers, one_process, parallel):
    size = 4 if "zero" in parallel else 2
    found = workers.run(adapted_step, size, {**parallel, "bucket_bytes": 2_000})
    for report in found:
        assert report.losses == pytest.approx(one_process.losses, abs=FP64.loss, rel=0)
        assert report.norms == pytest.approx(one_process.norms, rel=FP64.gradients)
    gradients, expected = whole(found, "gradients"), whole([one_process], "gradients")
    assert sum(name.endswith("lora_A.weight") for name in expected) == 15
    assert largest_gradient_error(gradients, expected) < FP64.gradients
