import math

import pytest
import torch

from mtron_models import fold_in, key_of, normal, philox, uniform
from mtron_models.random import words

# The known answers of the authors' library Random123, file kat_vectors, philox4x32 with 10 rounds.
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers_with_ints(counter, key, answer):
    assert philox(counter, key) == answer


def test_known_answers_with_tensors():
    columns = [
        torch.tensor(column) for column in zip(*(c for c, _, _ in KNOWN_ANSWERS), strict=True)
    ]
    keys = [torch.tensor(column) for column in zip(*(k for _, k, _ in KNOWN_ANSWERS), strict=True)]
    result = torch.stack(philox(tuple(columns), tuple(keys)), dim=-1)
    assert result.tolist() == [list(answer) for _, _, answer in KNOWN_ANSWERS]


def test_tensors_and_ints_mix_and_broadcast():
    rows, columns = torch.arange(5)[:, None], torch.arange(7)
    drawn = words((3, 4), (columns, rows, 9))
    assert drawn.shape == (5, 7, 4)
    assert tuple(drawn[2, 6].tolist()) == philox((6, 2, 9, 0), (3, 4))


def test_key_is_sha256_of_the_name():
    # sha256("abc") = ba7816bf 8f01cfea ..., read as little-endian bytes
    assert key_of("abc") == (0xBF1678BA, 0xEACF018F)


def test_fold_in_takes_64_bit_numbers_as_ints_and_tensors():
    key = key_of("site")
    numbers = [0, 1, 2**32, 2**40 + 5, 2**63 - 1, -1]
    folded = [fold_in(key, number, 7) for number in numbers]
    assert len(set(folded)) == len(numbers)
    low, high = fold_in(key, torch.tensor(numbers), torch.tensor(7))
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == folded
    second = [fold_in(key, 7, number) for number in numbers]
    assert len({*folded, *second}) == 2 * len(numbers)


def test_uniform_lies_in_the_half_open_interval_and_is_flat():
    drawn = uniform(key_of("uniform"), (torch.arange(50_000),))
    assert drawn.dtype == torch.float64
    assert drawn.shape == (50_000, 4)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = torch.histc(drawn, bins=64, min=0, max=1)
    expected = drawn.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # chi square, 63 degrees: p = 1e-5


def test_extreme_words_stay_in_range():
    largest = torch.tensor(float(ONES), dtype=torch.float64) * 2.0**-32
    assert largest < 1
    assert math.sqrt(-2 * math.log(2.0**-32)) < 6.7


def test_normal_has_the_moments_of_a_normal_and_uncorrelated_parts():
    drawn = normal(key_of("normal"), (torch.arange(100_000),))
    n = drawn.numel()
    assert drawn.dtype == torch.float64
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean() - moment) < 4.5 * math.sqrt(variance / n)
    assert (torch.corrcoef(drawn.T) - torch.eye(4)).abs().max() < 4.5 / math.sqrt(100_000)


def test_normal_is_box_muller_of_the_words():
    key, counter = key_of("oracle"), (11, 12, 13, 14)
    a, b, c, d = philox(counter, key)
    expected = []
    for first, second in ((a, b), (c, d)):
        radius = math.sqrt(-2 * math.log((first + 1) / 2**32))
        angle = 2 * math.pi * second / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert normal(key, counter).tolist() == pytest.approx(expected, rel=1e-13)


def test_a_value_does_not_depend_on_what_is_drawn_with_it():
    key = key_of("alone")
    together = normal(key, (torch.arange(1000), torch.arange(3)[:, None]))
    for column, row in ((0, 0), (1, 2), (17, 1), (998, 2), (999, 0)):
        assert torch.equal(normal(key, (column, row)), together[row, column])
    assert torch.equal(normal(key, (torch.arange(13, 29), 1)), together[1, 13:29])
