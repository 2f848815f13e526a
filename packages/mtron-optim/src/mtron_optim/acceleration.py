"""Make the training path of a model faster without changing the model."""

import copy
import logging
import platform
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mtron_optim.config import KernelConfig
from mtron_optim.kernels.embedding import attach_deterministic_embedding
from mtron_optim.kernels.linear import attach_onednn
from mtron_optim.memory import keep_freed_memory

logger = logging.getLogger(__name__)


class TrainableModel(Protocol):
    """What `accelerate` compiles: one method that is the whole way from tokens to the loss."""

    def train_loss(
        self, inputs: Tensor, labels: Tensor, weights: Tensor, context: Any, /
    ) -> Tensor:
        """Return the sum of per-token losses times their weights, a scalar.

        Args:
            inputs: [batch, seq], int64.
            labels: [batch, seq], int64.
            weights: [batch, seq].
            context: whatever else the model needs.
        """
        ...


def accelerate(model: nn.Module, config: KernelConfig) -> None:
    """Speed up the training of `model` in place.

    Modules, names, parameters, hooks and the state dict stay as they are. With `compile`, the
    bound method `model.train_loss` is replaced by a compiled one, so that forward and backward
    of backbone, head and loss are one region each; calls without gradients, as in validation, run
    uncompiled, because compiling for them would cost more than it saves. The results are those
    of the plain model up to rounding, and the same bits in every run with as many threads.

    Args:
        model: with its weights in place. `compile` needs the method `train_loss`.
        config: what to do.

    Raises:
        ValueError: the model or this machine does not allow what was asked for.
    """
    layers = attach_onednn(model, config.matmul)
    done = [f"{layers} linear layers multiply by oneDNN"] if layers else []
    if config.keep_memory and keep_freed_memory():
        done.append("freed memory stays in the process")
    if config.compile:
        _compile_train_loss(model)
        done.append("train_loss is compiled")
    logger.info("accelerate: %s", "; ".join(done) or "nothing to do here")


def _compile_train_loss(model: nn.Module) -> None:
    plain = getattr(model, "train_loss", None)
    if plain is None:
        raise ValueError(
            f"kernels.compile: {type(model).__name__} has no method train_loss to compile; "
            "use kernels.compile = false"
        )
    if isinstance(plain, _CompiledTrainLoss):
        return
    _check_compiler(next(model.parameters()).device)
    attach_deterministic_embedding(model)
    cast(Any, model).train_loss = _CompiledTrainLoss(plain)


class _CompiledTrainLoss:
    """Stands in for a bound method `train_loss`."""

    def __init__(self, plain: Callable[..., Tensor]) -> None:
        self.plain = plain
        # Anything but one whole graph, such as falling back to the plain form, is an error.
        self.compiled = torch.compile(plain, fullgraph=True, dynamic=False)

    def __call__(self, inputs: Tensor, labels: Tensor, weights: Tensor, *context: Any) -> Tensor:
        run = self.compiled if torch.is_grad_enabled() else self.plain
        return run(inputs, labels, weights, *context)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_CompiledTrainLoss":
        # What is compiled belongs to the model that it was made from.
        return _CompiledTrainLoss(copy.deepcopy(self.plain, memo))


def _check_compiler(device: torch.device) -> None:
    """Raise unless this machine can compile for `device`."""
    with warnings.catch_warnings():
        # Loading the compiler uses what torch itself has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch._inductor import compile_fx  # noqa: F401
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
    if device.type != "cpu":
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError(
            "kernels.compile: needs a C++ compiler, and there is no g++ or clang++ in PATH; "
            "install one, or use kernels.compile = false"
        ) from None
    headers = Path(sysconfig.get_path("include"))
    if platform.system() == "Linux" and not (headers / "Python.h").exists():
        raise ValueError(
            f"kernels.compile: needs Python's headers, and {headers} has no Python.h; install "
            "them (on Debian and Ubuntu the package python3-dev), or use kernels.compile = false"
        )
