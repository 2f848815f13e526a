"""A model with adapters and a smoothed loss, trained for a step on a pool's ranks or on none."""

from functools import partial
from typing import Any

import torch
from layouts import Parts, Report, job_here

from mtron_models import (
    Context,
    LlamaConfig,
    LoraConfig,
    adapter_parameters,
    add_lora,
    build,
    cross_entropy,
    initial_values,
)
from mtron_parallel import Block, Mesh, MicroBatch, ParallelConfig, parallelize

CONFIG = LlamaConfig(
    vocab_size=53,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    attention_bias=True,
)
ADAPTERS = LoraConfig(
    target_modules=("[qkvo]_proj", "mlp.*", "head"),
    modules_to_save=("post_attention_layernorm",),
    r=3,
)


def adapted_step(parallel: dict[str, Any]) -> Report:
    """Report loss, gradient norm and gradients of one step, of what is trained."""
    job = job_here()
    config = ParallelConfig(**parallel)
    mesh = Mesh.over(config, "cpu") if job.world_size > 1 else Mesh(torch.device("cpu"))
    plain = build(CONFIG, dtype=torch.float64)
    add_lora(plain, ADAPTERS)
    plain.head_loss.op = partial(cross_entropy, label_smoothing=0.1, z_loss=0.01)
    trained, draw = set(adapter_parameters(plain)), initial_values(plain, seed=0)
    model = parallelize(plain, mesh, plain.layout())

    def values(name: str, block: Block) -> torch.Tensor:
        found = draw(name, block.offset, block.shape)
        if name.endswith("lora_B.weight"):  # 0 at first, which would hide A's gradient
            rows = torch.arange(block.offset[0], block.offset[0] + block.shape[0])
            columns = torch.arange(block.offset[1], block.offset[1] + block.shape[1])
            found = 0.1 * torch.sin(3.0 * rows[:, None] + columns).double()
        return found

    model.fill(values)
    tokens = torch.randint(53, (4, 12), generator=torch.Generator().manual_seed(0))
    own = slice(mesh.rank("dp"), None, mesh.size("dp"))
    batch = MicroBatch(
        tokens[own, :-1].contiguous(),
        tokens[own, 1:].contiguous(),
        torch.ones(4 // mesh.size("dp"), 11),
        Context(),
    )
    loss = model.forward_backward([batch]).loss
    norm = float(model.grad_norm())
    frozen = {shard.name: shard.tensor for shard in model.shards() if shard.name not in trained}
    assert all(tensor.grad is None for tensor in frozen.values())
    found: Parts = {}
    for shard in model.shards():
        if shard.name in trained:
            blocks = shard.blocks_of(shard.tensor.grad)
            found[shard.name] = [(block.offset, part.numpy().copy()) for block, part in blocks]
    shapes = {name: place.global_shape for name, place in model.placements().items()}
    shapes = {name: shape for name, shape in shapes.items() if name in trained}
    return Report([loss], [norm], {}, found, {}, shapes)
