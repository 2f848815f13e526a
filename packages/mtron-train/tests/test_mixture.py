import pytest
import torch

from mtron_ckpt import open as open_checkpoint
from mtron_train import assemble
from mtron_train.step import train_step

MIXTURE = {
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 24,
    "router_aux_loss_over": "batch",
    "router_aux_loss_coef": 0.01,
    "hidden_dropout": 0.0,
}


def values(path):
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.names()}


def test_a_mixture_resumes_to_the_bit_with_the_shares_of_its_last_step(configure, run_to):
    whole, parts = (configure(name, steps=6, model=MIXTURE) for name in ("whole", "parts"))
    run_to(whole)
    run_to(parts, stop_after=3)
    run_to(parts)
    ends = [values(f"{c.run.directory}/checkpoints/step-00000006") for c in (whole, parts)]
    assert ends[0] == ends[1]
    assert "param/layers.0.mlp.router.load" in ends[0]


@pytest.mark.parametrize("over", ["sequence", "batch"])
def test_micro_batches_do_not_change_auxiliary_losses(configure, over):
    results = []
    for size in (8, 2):
        model = {**MIXTURE, "router_aux_loss_over": over, "router_aux_loss_coef": 1.0}
        config = configure(
            f"{over}{size}",
            run={"dtype": "float64"},
            model=model,
            data={"micro_batch_size": size},
            optim={"kind": "adamw"},
        )
        run = assemble(config)
        for _ in range(3):
            train_step(run.state, config)
        results.append(
            {shard.name: shard.tensor.detach().clone() for shard in run.state.model.shards()}
        )
        run.state.loader.close()
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-9, atol=1e-12)


def test_the_balancing_loss_reaches_the_router_and_the_load_is_counted(configure):
    loads, routers = [], []
    for coefficient in (0.0, 10.0):
        model = {**MIXTURE, "router_aux_loss_coef": coefficient, "router_aux_loss_over": "sequence"}
        config = configure(f"run{coefficient}", model=model)
        run = assemble(config)
        for _ in range(2):
            train_step(run.state, config)
        parameters = dict(run.state.model.module.named_parameters())
        routers.append(parameters["layers.1.mlp.router.weight"].detach().clone())
        loads.append("layers.1.mlp.router.load" in parameters)
        run.state.loader.close()
    assert not torch.equal(*routers)
    assert loads == [False, False]
