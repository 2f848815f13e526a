"""Dropout by a mask that is keyed by what an element is."""

import torch
from torch import Tensor

from mtron_models.context import RandomKey
from mtron_models.random import Key, fold_in, words


def keyed_dropout(x_BSD: Tensor, probability: float, site: Key, random: RandomKey) -> Tensor:
    """Zero elements at random and scale up the others; the same ones however the batch is split.

    Whether an element is zeroed depends only on the seed, the step, its sample, the site, its
    token's place in the sample and its place in the hidden vector.

    Args:
        x_BSD: any floating-point tensor.
        probability: of being zeroed, in [0, 1), kept to a multiple of 2**-32.
        site: key of the place in the model.
        random: seed, step, sample ids, and where the tokens stand.
    """
    _, seq, hidden = x_BSD.shape
    token = random.token_index
    if token is None:
        token = torch.arange(seq, device=x_BSD.device)
    key = fold_in(fold_in(site, random.seed), random.step, random.sample_ids[:, None, None])
    group = torch.arange((hidden + 3) // 4, device=x_BSD.device)  # a counter gives four words
    drawn = words(key, (group, token[..., None])).flatten(-2)[..., :hidden]
    keep = drawn >= round(probability * 2**32)
    return x_BSD * keep.to(x_BSD.dtype) * (1.0 / (1.0 - probability))
