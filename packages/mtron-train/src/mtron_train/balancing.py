"""What happens to the routers of mixtures of experts once per step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from mtron_models import Report, update_routers
from mtron_parallel import MicroBatch, ParallelModel

_COUNTS = ".counts"


def has_experts(model_config: object) -> bool:
    """Whether models of a configuration have routers, which report and are balanced."""
    return hasattr(model_config, "router_spec")


@torch.no_grad()
def balance_routers(model: ParallelModel, batches: Sequence[MicroBatch]) -> None:
    """Tell every router how often its experts were chosen in the global batch of a step.

    Args:
        model: on which the step was done; all ranks call this.
        batches: this rank's micro-batches, whose contexts hold what was reported.
    """
    counts: dict[str, torch.Tensor] = {}
    for batch in batches:
        report = batch.context.report
        if not isinstance(report, Report):
            return
        for name, value in report.values.items():
            if name.endswith(_COUNTS):
                counts[name] = counts[name] + value if name in counts else value
    if not counts:
        return
    total = torch.cat(list(counts.values()))
    group = model.mesh.group("dp")
    if group.size > 1:
        dist.all_reduce(total, group=group.handle)
    sizes = [len(value) for value in counts.values()]
    update_routers(model.module, dict(zip(counts, total.split(sizes), strict=True)))
