"""Latent attention gives on every layout what it gives in one process, in both its forms."""

import pytest
from latent import latent_step
from layouts import TENSOR, largest_gradient_error, whole
from tolerances import FP64

DENSE = {"first_k_dense_replace": 2}
EXPERTS = {"first_k_dense_replace": 1, "num_nextn_predict_layers": 1}
CASES = {
    "tp2, experts and further layers": (TENSOR["tp2"], EXPERTS, False),
    "tp2, no latent of queries": (TENSOR["tp2"], {**DENSE, "q_lora_rank": None}, True),
    "tp2-sp": (TENSOR["tp2-sp"], DENSE, False),
    "tp2-sp, experts": (TENSOR["tp2-sp"], {"first_k_dense_replace": 1}, False),
    "tp2-sp, absorbed": (TENSOR["tp2-sp"], DENSE, True),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_latents_are_those_of_one_process(workers, case):
    parallel, model, absorbed = CASES[case]
    expected = latent_step({}, model, absorbed=False)
    found = workers.run(latent_step, 2, parallel, model, absorbed)
    for report in found:
        assert report.losses == pytest.approx(expected.losses, abs=FP64.loss, rel=0)
        assert report.norms == pytest.approx(expected.norms, rel=FP64.gradients)
    gradients, exact = whole(found, "gradients"), whole([expected], "gradients")
    assert any("kv_a_proj_with_mqa" in name for name in exact)
    assert largest_gradient_error(gradients, exact) < FP64.gradients
