"""One optimizer step."""

from dataclasses import dataclass

from mtron_optim import clip_, learning_rate_scale, set_learning_rate
from mtron_train.balancing import balance_routers
from mtron_train.batches import global_batch
from mtron_train.config import RunConfig
from mtron_train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What a step measured.

    Attributes:
        loss: mean per valid token over the global batch, in nats.
        grad_norm: 2-norm of the gradient before clipping.
        learning_rate_scale: factor that the schedule gave to every learning rate.
        tokens: tokens of the global batch.
    """

    loss: float
    grad_norm: float
    learning_rate_scale: float
    tokens: int


def train_step(state: TrainState, config: RunConfig) -> StepResult:
    """Take one global batch, update the weights and advance `state`.

    Raises:
        FloatingPointError: the loss or the gradient is not finite; the weights are untouched.
    """
    model = state.model
    batches = global_batch(state.loader, config, state.step, model.mesh.device)
    stats = model.forward_backward(batches)
    norm = model.grad_norm()
    clip_(model.shards(), norm, config.optim.clip_norm)
    scale = learning_rate_scale(config.schedule, state.step)
    set_learning_rate(state.optimizer, scale)
    state.optimizer.step()
    model.publish()
    balance_routers(model, batches)
    tokens = sum(batch.inputs.numel() for batch in batches) * model.mesh.size("dp")
    state.step += 1
    state.tokens += tokens
    return StepResult(stats.loss, float(norm), scale, tokens)
