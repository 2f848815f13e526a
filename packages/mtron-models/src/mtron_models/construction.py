"""From a configuration to a model."""

import torch
from torch import nn

from mtron_models.config import ModelConfig
from mtron_models.registry import model_class


def build(
    config: ModelConfig, device: torch.device | str = "meta", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return the model of `config`, with parameters that have no values yet.

    On the meta device a model of any size takes no memory. Give it storage by `to_empty` (or by a
    parallelism package, which gives each rank its part) and values by `initialize` or by loading.

    Args:
        config: of any registered family.
        device: where the parameters are; elsewhere than on "meta" they are uninitialized.
        dtype: floating-point type of the parameters.
    """
    with torch.device("meta"):
        model = model_class(config.model_type)(config).to(dtype)
    return model if torch.device(device).type == "meta" else model.to_empty(device=device)
