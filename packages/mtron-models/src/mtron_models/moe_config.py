"""Sizes, operations and cuts of a mixture of experts, as plain data. Imports no torch."""

from mtron_models.layout import Layout, Replicate, Shard, colwise, expert, rowwise
from mtron_models.router_spec import RouterSpec


def moe_shapes(
    hidden: int, width: int, spec: RouterSpec, shared_size: int = 0, shared_gate: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of the layer `mlp`, in the model's order.

    Args:
        hidden: width of the residual stream.
        width: of an expert between its projections.
        spec: of the router.
        shared_size: width of the shared expert; 0 for none.
        shared_gate: whether tokens weigh the shared expert.
    """
    experts = spec.num_experts
    shapes: dict[str, tuple[int, ...]] = {"mlp.router.weight": (experts, hidden)}
    if spec.has_bias:
        shapes["mlp.router.bias"] = (experts,)
    if spec.batch_loss:
        shapes["mlp.router.load"] = (experts,)
    shapes["mlp.experts.gate_proj"] = shapes["mlp.experts.up_proj"] = (experts, width, hidden)
    shapes["mlp.experts.down_proj"] = (experts, hidden, width)
    if shared_size:
        shapes["mlp.shared_expert.gate_proj.weight"] = (shared_size, hidden)
        shapes["mlp.shared_expert.up_proj.weight"] = (shared_size, hidden)
        shapes["mlp.shared_expert.down_proj.weight"] = (hidden, shared_size)
    if shared_gate:
        shapes["mlp.shared_expert_gate.weight"] = (1, hidden)
    return shapes


def moe_flops(
    hidden: int, width: int, spec: RouterSpec, shared_size: int = 0, shared_gate: bool = False
) -> int:
    """Return the operations of the matrix products of a forward pass, per token.

    The router's, those of the experts that a token chooses (with a capacity, some of them may not
    be done), and those of the shared expert.

    Args:
        hidden: as of `moe_shapes`.
        width: as of `moe_shapes`.
        spec: as of `moe_shapes`.
        shared_size: as of `moe_shapes`.
        shared_gate: as of `moe_shapes`.
    """
    columns = spec.num_experts + 3 * spec.experts_per_token * width + 3 * shared_size
    return 2 * hidden * (columns + int(shared_gate))


def moe_layout(
    experts: str, width: str, *, shared: bool = True, shared_gate: bool = False
) -> Layout:
    """Return the part of a layout table for layers `mlp` that are mixtures of experts.

    Such a layer balances and fills its experts row by row, so it sees whole rows also where the
    layers around it hold parts of the sequence.

    Args:
        experts: the configuration's field that counts the experts.
        width: its field for the width of an expert.
        shared: whether there is a shared expert.
        shared_gate: whether tokens weigh it.
    """
    table: Layout = {
        "layers.*.mlp.router.*": Replicate(),
        "layers.*.mlp.experts.gate_proj": expert(of=experts, inner=Shard(1, of=width)),
        "layers.*.mlp.experts.up_proj": expert(of=experts, inner=Shard(1, of=width)),
        "layers.*.mlp.experts.down_proj": expert(of=experts, inner=Shard(2, of=width)),
    }
    if shared:
        table["layers.*.mlp.shared_expert.gate_proj.weight"] = colwise()
        table["layers.*.mlp.shared_expert.up_proj.weight"] = colwise()
        table["layers.*.mlp.shared_expert.down_proj.weight"] = rowwise()
    if shared_gate:
        table["layers.*.mlp.shared_expert_gate.weight"] = Replicate()
    return table
