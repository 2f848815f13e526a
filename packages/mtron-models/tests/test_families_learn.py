"""Every decoder learns real text: the source of the standard library's `json`, by characters."""

import sysconfig
from pathlib import Path

import pytest
import torch

SEQ_LEN, BATCH, STEPS, LEARNING_RATE = 32, 8, 80, 5e-3
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def text():
    """Characters as numbers below 101: most of every file to train on, and the rest of each."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / "json"
    files = [path.read_text("utf-8") for path in sorted(folder.glob("*.py"))]
    known = {character: number for number, character in enumerate(sorted(set("".join(files))))}
    assert len(known) <= 101
    numbers = [torch.tensor([known[character] for character in file]) for file in files]
    cuts = [len(file) * 9 // 10 for file in numbers]
    train = torch.cat([file[:cut] for file, cut in zip(numbers, cuts, strict=True)])
    held_out = torch.cat([file[cut:] for file, cut in zip(numbers, cuts, strict=True)])
    return train, held_out


def rows_of(characters):
    """All whole rows of a text: inputs and labels, each `[rows, SEQ_LEN]`."""
    rows = characters.unfold(0, SEQ_LEN + 1, SEQ_LEN)
    return rows[:, :-1], rows[:, 1:]


def unigram_loss(characters, labels):
    """Nats per character of a model that only knows how frequent each one is."""
    counts = torch.bincount(characters, minlength=101) + 1.0
    return -(counts / counts.sum()).log()[labels].mean().item()


def train(model, characters, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    inputs, labels = rows_of(characters)
    weights = torch.full((BATCH, SEQ_LEN), 1 / (BATCH * SEQ_LEN))
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH,), generator=generator)
        loss = model.train_loss(inputs[rows], labels[rows], weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("seed", SEEDS)
def test_it_beats_the_frequencies_of_characters(plain_decoder, seed, family_model, text):
    characters, held_out = text
    model = family_model(plain_decoder, torch.float32, seed, initializer_range=0.1)
    train(model, characters, seed)
    inputs, labels = rows_of(held_out)
    with torch.no_grad():
        loss = model.loss(model.backbone(inputs), labels).mean().item()
    assert loss < 0.9 * unigram_loss(characters, labels)
