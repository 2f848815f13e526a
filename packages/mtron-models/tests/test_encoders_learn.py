"""BERT and T5 learn real text, the source of parts of the standard library, by characters."""

import sysconfig
from pathlib import Path

import pytest
import torch
from torch.nn.functional import pad

MASK = 127
"""The token of a masked character; characters are below 96."""
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def texts_of(folder):
    """The sources in a folder of the standard library: most of each to train on, and the rest."""
    files = sorted((Path(sysconfig.get_paths()["stdlib"]) / folder).glob("*.py"))
    texts = [path.read_text("utf-8") for path in files]
    numbers = [torch.tensor([max(0, min(ord(c) - 31, 95)) for c in text]) for text in texts]
    cuts = [len(text) * 9 // 10 for text in texts]
    train = torch.cat([text[:cut] for text, cut in zip(numbers, cuts, strict=True)])
    return train, torch.cat([text[cut:] for text, cut in zip(numbers, cuts, strict=True)])


def pieces(text, length, number, seed):
    """Random pieces of a text, `[number, length]`."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length, (number,), generator=generator)
    return text[starts[:, None] + torch.arange(length)]


def unigram_loss(train, characters):
    """Nats per character of what only knows how frequent each one is."""
    counts = torch.bincount(train, minlength=96) + 1.0
    return -(counts / counts.sum()).log()[characters].mean().item()


def train(model, batch_of, steps, learning_rate):
    """Train on `batch_of(step)`, the arguments of `train_loss`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 20) * (1 - step / steps)
        loss = model.train_loss(*batch_of(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def masked(rows, seed):
    """Rows with 15% of the characters masked, the rows, and each masked one's share of the loss."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows.shape, generator=generator) < 0.15
    return rows.masked_fill(chosen, MASK), rows, chosen / chosen.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_characters_are_guessed_from_both_sides(seed, family_model):
    text, held_out = texts_of("json")
    model = family_model("bert", torch.float32, seed, vocab_size=128, num_hidden_layers=1)

    def batch_of(step):
        number = 10_000 * seed + step
        return masked(pieces(text, 8, 96, number), number)

    train(model, batch_of, 270, 1e-2)
    inputs, labels, weights = masked(pieces(held_out, 8, 500, 7), 7)
    with torch.no_grad():
        loss = model.train_loss(inputs, labels, weights).item()
    assert loss < 0.9 * unigram_loss(text, labels[weights > 0])


FIRST_SENTINEL = 100
"""Sentinel `k` stands for the span `k` that was taken out."""
SPANS, SPAN = 2, 6


def corrupted(rows):
    """What span corruption makes of rows: inputs, decoder inputs, labels.

    Spans at even distances are replaced by a sentinel each; the target is every sentinel and what
    it stands for.
    """
    parts = rows.unflatten(1, (SPANS, -1))
    sentinels = (FIRST_SENTINEL + torch.arange(SPANS)).expand(len(rows), SPANS)[..., None]
    inputs = torch.cat((parts[..., :-SPAN], sentinels), dim=-1).flatten(1)
    labels = torch.cat((sentinels, parts[..., -SPAN:]), dim=-1).flatten(1)
    return inputs, pad(labels[:, :-1], (1, 0), value=MASK), labels


@pytest.mark.parametrize("seed", SEEDS)
def test_spans_that_were_taken_out_are_written(seed, family_model):
    text, held_out = texts_of("json")
    model = family_model(
        "t5_with_gates",
        torch.float32,
        seed,
        vocab_size=128,
        num_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.0,
        initializer_factor=0.5,
    )

    def batch_of(step):
        inputs, decoder_inputs, labels = corrupted(pieces(text, 32, 32, 10_000 * seed + step))
        return inputs, decoder_inputs, labels, torch.full(labels.shape, 1 / labels.numel())

    train(model, batch_of, 130, 2e-2)
    inputs, decoder_inputs, labels = corrupted(pieces(held_out, 32, 100, 7))
    characters = labels < FIRST_SENTINEL
    with torch.no_grad():
        _, hidden = model.backbone(inputs, decoder_inputs)
        loss = model.loss(hidden, labels)[characters].mean().item()
    assert loss < 0.9 * unigram_loss(text, labels[characters])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_source_of_a_piece_is_told(seed, family_model):
    texts = [texts_of(folder) for folder in ("json", "html", "wsgiref")]
    majority = 1 / len(texts)

    def rows_of(part, number, seed):
        """As many pieces of each source, of its part to train on (0) or of the rest (1)."""
        rows = [pieces(text[part], 32, number, seed + 31 * i) for i, text in enumerate(texts)]
        return torch.cat(rows), torch.arange(len(texts)).repeat_interleave(number)

    model = family_model(
        "bert",
        torch.float32,
        seed,
        vocab_size=128,
        num_hidden_layers=1,
        heads=("pooler", "classifier"),
        num_labels=len(texts),
    )

    def batch_of(step):
        rows, labels = rows_of(0, 12, 10_000 * seed + step)
        return rows, labels, torch.full(labels.shape, 1 / len(labels))

    train(model, batch_of, 100, 1e-2)
    rows, labels = rows_of(1, 100, 7)
    with torch.no_grad():
        right = (model(rows).argmax(-1) == labels).double().mean().item()
    assert right > 1.1 * majority
