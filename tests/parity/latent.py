"""A DeepSeek-V3 whose heads are spread over the ranks of a pool or of none, trained for a step."""

from typing import Any

import torch
from layouts import Parts, Report, job_here

from mtron_models import Context, FurtherLabels, absorb, build, config_from_dict, initial_values
from mtron_parallel import Mesh, MicroBatch, ParallelConfig, parallelize

CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 53,
    "hidden_size": 30,
    "intermediate_size": 44,
    "moe_intermediate_size": 14,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "q_lora_rank": 14,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 6,
    "n_group": 3,
    "topk_group": 2,
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "initializer_range": 0.2,
}
"""Six heads, which two ranks share; the latents' widths have nothing to do with their number."""


def latent_step(parallel: dict[str, Any], model: dict[str, Any], absorbed: bool) -> Report:
    """Report loss, gradient norm and gradients of one step.

    Args:
        parallel: fields of the layout.
        model: fields of the model that are not as above.
        absorbed: whether attention computes in the form of generation.
    """
    job = job_here()
    config = ParallelConfig(**parallel)
    mesh = Mesh.over(config, "cpu") if job.world_size > 1 else Mesh(torch.device("cpu"))
    plain = build(config_from_dict(CONFIG | model), dtype=torch.float64)
    absorb(plain, absorbed)
    draw = initial_values(plain, seed=0)
    trained = parallelize(plain, mesh, plain.layout())
    trained.fill(lambda name, block: draw(name, block.offset, block.shape))
    tokens = torch.randint(53, (2, 14), generator=torch.Generator().manual_seed(0))
    further = FurtherLabels(tokens[:, 2:, None], torch.full((2, 12, 1), 0.3))
    batch = MicroBatch(
        tokens[:, :12].contiguous(),
        tokens[:, 1:13].contiguous(),
        torch.ones(2, 12),
        Context(further_labels=further if model.get("num_nextn_predict_layers") else None),
    )
    loss = trained.forward_backward([batch]).loss
    norm = float(trained.grad_norm())
    found: Parts = {}
    for shard in trained.shards():
        if shard.tensor.grad is not None:
            blocks = shard.blocks_of(shard.tensor.grad)
            found[shard.name] = [(block.offset, part.numpy().copy()) for block, part in blocks]
    shapes = {n: place.global_shape for n, place in trained.placements().items() if n in found}
    return Report([loss], [norm], {}, found, {}, shapes)
