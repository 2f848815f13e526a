import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtron_data.order.permutation import Permutation
from mtron_data.order.sequential import SequentialOrder
from mtron_data.order.stream import StreamOrder

KNOWN_TEN = [9, 5, 2, 8, 1, 0, 3, 4, 7, 6]
KNOWN_LARGE = 990912261347
KNOWN_STARTS = [147590, 431238, 370822, 220809, 116099]


def permutation(size, key=b"key"):
    return Permutation(size, key).images(np.arange(size))


@given(size=st.integers(1, 3000), key=st.binary(max_size=40))
@example(size=1, key=b"")
@example(size=2, key=b"")
@example(size=2500, key=b"")
def test_is_a_bijection_and_both_forms_agree(size, key):
    images = permutation(size, key)
    assert sorted(images.tolist()) == list(range(size))
    one_by_one = Permutation(size, key)
    for index in range(0, size, max(1, size // 20)):
        assert one_by_one.image(index) == images[index]


@given(size=st.integers(1, 2**63 - 1), data=st.data())
@example(size=2**63 - 1, data=None)
def test_large_sizes(size, data):
    indices = [0, size - 1] + (
        [] if data is None else data.draw(st.lists(st.integers(0, size - 1)))
    )
    shuffled = Permutation(size, b"key")
    images = shuffled.images(np.array(indices, np.int64))
    assert images.tolist() == [shuffled.image(index) for index in indices]
    assert all(0 <= image < size for image in images.tolist())
    assert len(set(images.tolist())) == len(set(indices))


def test_known_values():
    """The order of a run that is resumed must never change; nor may a later version change it."""
    assert permutation(10).tolist() == KNOWN_TEN
    assert Permutation(10**12, b"key").image(123456789) == KNOWN_LARGE
    order = StreamOrder(1_000_003, 256, seed=7)
    assert [order.pieces([i])[0][0].start for i in (0, 1, 3905, 3906, 10**9)] == KNOWN_STARTS


def excess(counts, outcomes, trials):
    """How many standard deviations chi-square lies above its mean, all outcomes being alike."""
    expected = trials / outcomes
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    chi_square += (outcomes - len(counts)) * expected
    return (chi_square - (outcomes - 1)) / math.sqrt(2 * (outcomes - 1))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_of_few_elements_are_equally_likely(size):
    trials = max(4000, 10 * math.factorial(size))
    seen = Counter()
    for key in range(trials):
        shuffled = Permutation(size, str(key).encode())
        seen[tuple(shuffled.image(index) for index in range(size))] += 1
    assert excess(seen.values(), math.factorial(size), trials) < 5


def quality(images):
    """Statistics of a shuffle, each about normal with mean 0 and deviation 1."""
    n = len(images)
    centred = (images - images.mean()) / images.std()
    natural = np.arange(n) - (n - 1) / 2
    natural /= natural.std()
    cells = np.histogram2d(np.arange(n), images, bins=20)[0]
    gaps = np.abs(np.diff(images))
    mean, deviation = (n + 1) / 3, math.sqrt((n + 1) * (n - 2) / 18)
    return {
        "correlation with position": (centred @ natural) / math.sqrt(n),
        "correlation of neighbours": (centred[:-1] @ centred[1:]) / math.sqrt(n),
        "spread over 20 x 20 cells": excess(cells.ravel(), 400, n),
        "distance of neighbours": (gaps.mean() - mean) / (deviation / math.sqrt(n)),
        "ascents": (np.count_nonzero(np.diff(images) > 0) - (n - 1) / 2) / math.sqrt(n / 12),
        "parity of neighbours": (np.count_nonzero(np.diff(images % 2)) - n / 2) / math.sqrt(n / 4),
    }


@pytest.mark.parametrize("size", [1000, 10_007, 65_536])
@pytest.mark.parametrize("key", [b"a", b"b"])
def test_quality_of_a_long_shuffle(size, key):
    for name, value in quality(permutation(size, key)).items():
        assert abs(value) < 5, name


def test_the_measures_pass_numpy_and_fail_weak_shuffles():
    size = 10_007
    numpy_shuffle = np.random.default_rng(0).permutation(size)
    assert max(map(abs, quality(numpy_shuffle).values())) < 5
    affine = (np.arange(size) * 3001 + 17) % size
    blocks = np.concatenate(
        [np.random.default_rng(i).permutation(1000) + 1000 * i for i in range(10)]
    )
    for weak in (np.arange(size), affine, blocks):
        assert max(map(abs, quality(weak).values())) > 8


def test_fixed_points_are_as_rare_as_chance():
    counts = [
        int((permutation(200, str(key).encode()) == np.arange(200)).sum()) for key in range(400)
    ]
    assert abs(np.mean(counts) - 1) < 5 / math.sqrt(400)


def test_epochs_and_seeds_are_unrelated():
    size = 5000
    shuffles = [permutation(size, key) for key in (b"1 0", b"1 1", b"2 0")]
    for one, other in itertools.combinations(shuffles, 2):
        correlation = np.corrcoef(one, other)[0, 1]
        assert abs(correlation) * math.sqrt(size) < 5
        assert np.count_nonzero(one == other) < 10


def windows(order, indices, num_tokens):
    """The first token and the label tokens of each sample."""
    found = []
    for pieces in order.pieces(indices):
        tokens = np.concatenate([np.arange(start, stop) for start, stop in pieces])
        assert all(0 <= start < stop <= num_tokens for start, stop in pieces)
        found.append(tokens)
    return found


@given(data=st.data(), seq_len=st.integers(1, 12), seed=st.integers(-5, 2**70))
def test_stream_predicts_every_token_once_per_epoch(data, seq_len, seed):
    num_tokens = data.draw(st.integers(seq_len + 1, 150))
    order = StreamOrder(num_tokens, seq_len, seed)
    per_epoch = order.samples_per_epoch
    assert per_epoch == num_tokens // seq_len
    for epoch in range(3):
        indices = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        labels = []
        for tokens in windows(order, indices, num_tokens):
            assert len(tokens) == seq_len + 1
            assert np.array_equal(np.diff(tokens) % num_tokens, np.ones(seq_len))
            labels += tokens[1:].tolist()
        assert len(set(labels)) == len(labels) == per_epoch * seq_len
        assert num_tokens - len(labels) < seq_len


@given(indices=st.lists(st.integers(0, 10**12), min_size=1, max_size=80))
@example(indices=[*range(280, 340), *range(10**12, 10**12 + 60)])  # many at once, several epochs
def test_stream_is_a_function_of_the_index_alone(indices):
    together = StreamOrder(10_000, 32, seed=3).pieces(indices)
    assert together == [StreamOrder(10_000, 32, seed=3).pieces([i])[0] for i in indices]


def test_stream_epochs_are_cut_elsewhere_and_ordered_otherwise():
    order = StreamOrder(10_000, 32, seed=3)
    per_epoch = order.samples_per_epoch
    phases, orders = [], []
    for epoch in range(8):
        starts = [
            pieces[0].start
            for pieces in order.pieces(range(epoch * per_epoch, (epoch + 1) * per_epoch))
        ]
        phases.append(starts[0] % 32)
        orders.append(tuple(starts))
    assert len(set(phases)) > 4
    assert len(set(orders)) == 8
    assert StreamOrder(10_000, 32, seed=4).pieces([0]) != order.pieces([0])


@given(data=st.data(), seq_len=st.integers(1, 12))
def test_sequential_predicts_every_token_but_the_first_exactly_once(data, seq_len):
    num_tokens = data.draw(st.integers(2, 150))
    order = SequentialOrder(num_tokens, seq_len)
    labels = []
    for tokens in windows(order, range(order.num_samples), num_tokens):
        assert 2 <= len(tokens) <= seq_len + 1
        labels += tokens[1:].tolist()
    assert labels == list(range(1, num_tokens))
