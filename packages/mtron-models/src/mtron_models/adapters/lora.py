"""Low-rank adapters of linear layers: thin matrices that are trained while the model is not.

Reference: Hu et al., arXiv:2106.09685. With equal weights the outputs are those of PEFT.

A layer with an adapter is the linear layer that it was, under the same name and with the same
parameters, which adds the product of two thin matrices to its output. Hooks around it therefore
compose: under tensor parallelism one of the two matrices is cut as the layer is, the other one is
whole, and nothing more is communicated.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mtron_models.adapters.config import LoraConfig
from mtron_models.adapters.rules import init_rules_of, layout_of
from mtron_models.adapters.targets import find_saved, find_targets
from mtron_models.context import Context
from mtron_models.init import initial_block
from mtron_models.layers.dropout import Dropout
from mtron_models.ops import at_least_fp32


class LoraLinear(nn.Linear):
    """A linear layer that adds `scaling * lora_B(lora_A(x))` to its output.

    Args:
        linear: the layer, whose parameters it takes over.
        name: of the layer in the model.
        config: of the adapter.
    """

    def __init__(self, linear: nn.Linear, name: str, config: LoraConfig) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        like = {"bias": False, "device": "meta", "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(linear.in_features, config.r, **like)
        self.lora_B = nn.Linear(config.r, linear.out_features, **like)
        self.lora_dropout = Dropout(config.lora_dropout, f"{name}.lora_dropout")
        self.name, self.width, self.scaling = name, linear.in_features, config.scaling
        self.context = Context()
        self.is_merged = False

    def forward(self, input: Tensor) -> Tensor:
        """Transform `[..., in]` to `[..., out]`."""
        output = super().forward(input)
        if self.is_merged:
            return output
        return output + self.lora_B(self.lora_A(self._dropped(input))) * self.scaling

    def _dropped(self, x: Tensor) -> Tensor:
        """Drop elements of `[batch, seq, in]` by a mask that depends on the sample and its token.

        Raises:
            ValueError: the layer sees a part of the tokens or of the elements only.
        """
        if not self.training or self.lora_dropout.probability == 0:
            return x
        random = self.context.random
        tokens = None if random is None else random.token_index
        is_cut = x.shape[-1] != self.width or x.dim() != 3
        if is_cut or (tokens is not None and tokens.shape[-1] != x.shape[1]):
            raise ValueError(
                f"lora_dropout: {self.name} gets other tokens or elements than those of the whole "
                f"layer, as under tensor parallelism, got an input of {list(x.shape)}; use 0"
            )
        return self.lora_dropout(x, self.context)

    @torch.no_grad()
    def add_to_weight(self, sign: int) -> None:
        """Add the adapter's product to the weight, or subtract it.

        Args:
            sign: 1 or -1.
        """
        dtype = at_least_fp32(self.weight.dtype)
        product = self.lora_B.weight.to(dtype) @ self.lora_A.weight.to(dtype)
        changed = self.weight.to(dtype) + sign * self.scaling * product
        self.weight.copy_(changed)


def add_lora(model: nn.Module, config: LoraConfig, seed: int = 0) -> None:
    """Give linear layers of `model` adapters, and let only these be trained.

    To be called before anything is attached to the model from outside. `model.layout()` and
    `model.init_rules()` cover the adapters afterwards. They begin without effect: A is random, as
    keyed by `seed` and name, and B is 0.

    Args:
        model: of any family, on the meta device (to be initialized or filled later) or not.
        config: which layers, and the adapter's sizes.
        seed: of the initial values of A, where the model has values.

    Raises:
        ValueError: a name in the configuration fits no module, or one that cannot be adapted.
    """
    targets = find_targets(model, config)
    saved = find_saved(model, config, targets)
    adapted = {
        name: LoraLinear(linear, name, config).train(linear.training)
        for name, linear in targets.items()
    }
    handles = _give_contexts(model, adapted) if config.lora_dropout else []
    for name, linear in adapted.items():
        model.set_submodule(name, linear)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for linear in adapted.values():
        for part in (linear.lora_A, linear.lora_B):
            part.weight.requires_grad = True
    for module in saved.values():
        module.requires_grad_(True)
    plain: Any = model
    plain.lora_handles = handles
    plain.layout = layout_of(plain.layout, list(adapted))
    widths = {name: linear.width for name, linear in adapted.items()}
    plain.init_rules = init_rules_of(plain.init_rules, widths)
    _fill(model, adapted, seed)


def merge_lora(model: nn.Module) -> None:
    """Add every adapter's product to the weight beside it, and switch the adapters off.

    Inference is then as fast as without them. `unmerge_lora` undoes it.

    Raises:
        ValueError: there are no adapters, or they are merged already.
    """
    for linear in _adapted(model, is_merged=False).values():
        linear.add_to_weight(1)
        linear.is_merged = True


def unmerge_lora(model: nn.Module) -> None:
    """Subtract what `merge_lora` has added, to within rounding, and switch the adapters on.

    Raises:
        ValueError: there are no adapters, or they are not merged.
    """
    for linear in _adapted(model, is_merged=True).values():
        linear.add_to_weight(-1)
        linear.is_merged = False


def remove_lora(model: nn.Module) -> None:
    """Take the adapters out again; what `merge_lora` has added stays. All parameters are trained.

    To be called before anything is attached to the model from outside, as `add_lora`.

    Raises:
        ValueError: there are no adapters.
    """
    for name, linear in _adapted(model).items():
        plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        plain.weight, plain.bias = linear.weight, linear.bias
        model.set_submodule(name, plain.train(linear.training))
    model.requires_grad_(True)
    plain_model: Any = model
    for handle in plain_model.lora_handles:
        handle.remove()
    del plain_model.lora_handles, plain_model.layout, plain_model.init_rules


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained of a model with adapters, by name: what its checkpoints need to hold.

    Raises:
        ValueError: there are no adapters.
    """
    _adapted(model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _adapted(model: nn.Module, is_merged: bool | None = None) -> dict[str, LoraLinear]:
    """Return the layers with adapters by name, all of which are merged or not."""
    found = {
        name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)
    }
    if not found:
        raise ValueError("model: has no adapters; call add_lora first")
    for name, module in found.items():
        if is_merged is not None and module.is_merged != is_merged:
            state = "is merged already" if module.is_merged else "is not merged"
            raise ValueError(f"model: the adapter of {name} {state}")
    return found


def _give_contexts(model: nn.Module, names: Iterable[str]) -> list[RemovableHandle]:
    """Let layers know the context of each forward pass, on which their dropout depends.

    They take no context themselves, so the modules around them hand on the one that they get.

    Raises:
        ValueError: no module is around a layer.
    """
    around: dict[str, nn.Module] = {}
    for name in names:
        parts = name.split(".")[:-1]
        if not parts:
            raise ValueError(
                f"lora_dropout: {name} is called without a context, on which dropout depends, got "
                "an adapter with dropout; leave it out of target_modules, or use 0"
            )
        outer = [".".join(parts[: end + 1]) for end in range(len(parts))]
        around |= {name: model.get_submodule(name) for name in outer}
    return [
        module.register_forward_pre_hook(_hand_on, with_kwargs=True) for module in around.values()
    ]


def _hand_on(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Give the context that a module is called with to the layers inside."""
    for value in (*inputs, *keywords.values()):
        if isinstance(value, Context):
            for layer in module.modules():
                if isinstance(layer, LoraLinear):
                    layer.context = value


@torch.no_grad()
def _fill(model: nn.Module, adapted: dict[str, LoraLinear], seed: int) -> None:
    """Give the adapters values where the layers have some."""
    plain: Any = model
    rules = plain.init_rules()
    for name, linear in adapted.items():
        if linear.weight.is_meta:
            continue
        for part, layer in (("lora_A", linear.lora_A), ("lora_B", linear.lora_B)):
            weight = layer.to_empty(device=linear.weight.device).weight
            whole, shape = f"{name}.{part}.weight", weight.shape
            zeros, dtype = (0,) * len(shape), weight.dtype
            weight.copy_(initial_block(whole, rules[whole], seed, zeros, shape, shape, dtype))
