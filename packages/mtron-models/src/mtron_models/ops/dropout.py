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
    return _dropped(x_BSD, drawn, probability)


def keyed_weight_dropout(
    weights: Tensor, probability: float, site: Key, random: RandomKey, first_head: int = 0
) -> Tensor:
    """Zero attention weights at random and scale up the others, as `keyed_dropout` does.

    Whether a weight is zeroed depends only on the seed, the step, its sample, the site, its query
    head, and the places of its query and its key in the sample.

    Args:
        weights: `[B, N, S, T]` of S queries and T keys. Queries and keys are the same tokens where
            there are equally many.
        probability: of being zeroed, in [0, 1), kept to a multiple of 2**-32.
        site: key of the place in the model.
        random: seed, step, sample ids, and where the tokens stand.
        first_head: which of the layer's query heads the first one here is.

    Raises:
        ValueError: `random.token_index` is not of the queries, or says nothing of the keys.
    """
    heads, queries, keys = weights.shape[1:]
    query, key_token = _places(random.token_index, queries, keys, weights.device)
    key = fold_in(site, random.seed)
    key = fold_in(key, random.step, random.sample_ids[:, None, None, None])
    first_group, end_group = first_head // 4, -(-(first_head + heads) // 4)
    group = torch.arange(first_group, end_group, device=weights.device)[:, None, None]
    counter = (key_token[..., None, None, :], query[..., None, :, None], group)
    drawn = words(key, counter).movedim(-1, 2).flatten(1, 2)  # a counter gives four heads
    drawn = drawn[:, first_head - 4 * first_group :][:, :heads]
    return _dropped(weights, drawn, probability)


def _places(
    token_index: Tensor | None, queries: int, keys: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the places of queries and of keys in their samples."""
    if token_index is None:
        return torch.arange(queries, device=device), torch.arange(keys, device=device)
    if token_index.shape[-1] != queries or queries != keys:
        raise ValueError(
            f"context.random.token_index: must place each of {queries} queries and {keys} keys for "
            f"dropout of attention weights, got places of {token_index.shape[-1]} tokens; leave "
            "the sequence undivided, or set the dropout of attention to 0"
        )
    return token_index, token_index


def _dropped(x: Tensor, drawn: Tensor, probability: float) -> Tensor:
    """Zero the elements of `x` whose random word is small, and scale up the others."""
    keep = drawn >= round(probability * 2**32)
    return x * keep.to(x.dtype) * (1.0 / (1.0 - probability))
