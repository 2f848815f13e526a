"""Choose next tokens from logits, each row by its own rules and its own random numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtron_infer.config import SamplingParams
from mtron_infer.sequence import Continuation, Score
from mtron_models import Key, fold_in, key_of, philox

_PURPOSE = key_of("generation")


def random_key(seed: int, index: int) -> Key:
    """Return the key of the random numbers of choice `index` under a 64-bit `seed`."""
    return fold_in(_PURPOSE, seed, index)


def pick(
    logits: Tensor, rows: Sequence[Continuation], vocab_size: int
) -> list[tuple[int, Score | None]]:
    """Choose the next token of every row, with its score where the row asks for it.

    Args:
        logits: `[rows, vocab]`, floating, finite; may be overwritten.
        rows: the continuations that the logits belong to.
        vocab_size: tokens from this one on exist in the model only and are never chosen.
    """
    scored = [i for i, row in enumerate(rows) if row.request.params.logprobs is not None]
    untouched = logits[scored]
    tokens = sample(logits[:, :vocab_size], rows) if rows else []
    scores: list[Score | None] = [None] * len(rows)
    if scored:
        num_top = [rows[i].request.params.logprobs or 0 for i in scored]
        found = score(untouched, [tokens[i] for i in scored], max(num_top), vocab_size)
        for i, num, full in zip(scored, num_top, found, strict=True):
            scores[i] = Score(full.logprob, full.top[:num])
    return list(zip(tokens, scores, strict=True))


def sample(logits: Tensor, rows: Sequence[Continuation]) -> list[int]:
    """Choose the next token of every row.

    A row's token depends on its logits, its parameters and (seed, choice index, position), and on
    nothing else that is in the batch.

    Args:
        logits: `[rows, vocab]`, floating, finite; overwritten where a row adjusts its own.
        rows: the continuations that the logits belong to.

    Returns:
        Token ids.
    """
    for i, row in enumerate(rows):
        _adjust(logits[i], row)
    drawn = [i for i, row in enumerate(rows) if row.request.params.temperature > 0.0]
    tokens = logits.argmax(dim=-1).tolist()
    if drawn:
        picked = _draw(logits[drawn].double(), [rows[i] for i in drawn])
        for i, token in zip(drawn, picked, strict=True):
            tokens[i] = token
    return tokens


def score(logits: Tensor, token_ids: Sequence[int], num_top: int, vocab_size: int) -> list[Score]:
    """Return the model's log-probability of each token and of the most probable ones.

    Args:
        logits: `[rows, vocab]`, floating.
        token_ids: one per row.
        num_top: how many of the most probable ones.
        vocab_size: tokens from this one on exist in the model only; they have their share of
            the probability, but are not reported.
    """
    ids = torch.tensor(token_ids, device=logits.device)
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    best = logprobs[:, :vocab_size].topk(min(num_top, vocab_size), dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Score(logprob, tuple(zip(indices, values, strict=True)))
        for logprob, (indices, values) in zip(chosen, tops, strict=True)
    ]


def _adjust(logits: Tensor, row: Continuation) -> None:
    """Apply bias and penalties to one row of logits `[vocab]`, in place."""
    params = row.request.params
    changes: dict[int, float] = dict(params.logit_bias)
    if params.presence_penalty or params.frequency_penalty:
        for token, count in row.counts.items():
            penalty = params.presence_penalty + count * params.frequency_penalty
            changes[token] = changes.get(token, 0.0) - penalty
    if changes:
        ids = torch.tensor(list(changes), device=logits.device)
        values = torch.tensor(list(changes.values()), dtype=logits.dtype, device=logits.device)
        logits[ids] += values


def _draw(logits: Tensor, rows: Sequence[Continuation]) -> list[int]:
    """Draw one token per row of `[rows, vocab]` float64 by inverting the distribution function.

    Probabilities are summed in the order of the vocabulary, not by size, so that a last-bit
    difference between two nearly equal logits does not exchange tokens.
    """
    temperatures = [row.request.params.temperature for row in rows]
    scale = torch.tensor(temperatures, dtype=logits.dtype, device=logits.device)[:, None]
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / scale
    probabilities = logits.softmax(dim=-1)
    for i, row in enumerate(rows):
        _truncate(probabilities[i], row.request.params)
    sums = probabilities.cumsum(dim=-1)
    uniform = torch.tensor([_uniform(row) for row in rows], dtype=sums.dtype, device=sums.device)
    # The largest target lies under the total by far more than rounding, so an index always exists.
    return torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True)[:, 0].tolist()


def _truncate(probabilities: Tensor, params: SamplingParams) -> None:
    """Set to zero, in place, what top-k and top-p leave out of one row `[vocab]`."""
    vocab_size = probabilities.shape[0]
    top_k = min(params.top_k, vocab_size) or vocab_size
    if top_k == vocab_size and params.top_p == 1.0:
        return
    values, order = probabilities.sort(descending=True, stable=True)
    before = values[:top_k].cumsum(dim=0) - values[:top_k]
    kept = int((before < params.top_p * values[:top_k].sum()).sum())
    probabilities[order[kept:]] = 0.0


def _uniform(row: Continuation) -> float:
    """Return the row's number in [0, 1) for the position of its next token."""
    word = philox((len(row.tokens), 0, 0, 0), row.random_key)[0]
    return int(word) * 2.0**-32
