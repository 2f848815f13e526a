"""Values and gradients against what one process computes from everybody's tensors."""

import pytest
import torch
from torch.nn.functional import pad

from mtron_parallel import Mesh, ParallelConfig
from mtron_parallel.differentiable import copy_to, gather_sequence, scatter_sequence, sum_over

SHAPE = (2, 3)
"""Batch and hidden size."""


def random(seed, length, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    batch, hidden = SHAPE
    values = torch.randn(batch, length, hidden, dtype=torch.float64, generator=generator)
    return values.requires_grad_(requires_grad)


def backward(x, y, weights):
    """The gradient of x where the loss is y times the weights; it arrives as a transposed view."""
    (y.mT @ weights).diagonal(dim1=1, dim2=2).sum().backward()
    return x.grad


def check_all(length):
    """Each function with `length` tokens in a row."""
    group = Mesh.over(ParallelConfig(), "cpu").group("world")
    size, rank = group.size, group.rank
    own = -(-length // size)
    sequence = random(0, length)
    parts = pad(sequence, (0, 0, 0, own * size - length)).unflatten(1, (size, own))
    # What each rank does with a tensor that all have, and the partial results that each has.
    weights = [random(10 + other, length) for other in range(size)]
    partial = [random(20 + other, length) for other in range(size)]

    def same(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)

    x = random(0, length, requires_grad=True)
    y = copy_to(x, group)
    same(y, sequence)
    same(backward(x, y, weights[rank]), sum(weights))

    x = random(20 + rank, length, requires_grad=True)
    y = sum_over(x, group)
    same(y, sum(partial))
    same(backward(x, y, weights[0]), weights[0])

    x = parts[:, rank].clone().requires_grad_()
    y = gather_sequence(x, group, length)
    same(y, sequence)
    expected = pad(sum(weights), (0, 0, 0, own * size - length)).unflatten(1, (size, own))
    same(backward(x, y, weights[rank]), expected[:, rank])

    x = random(20 + rank, length, requires_grad=True)
    y = scatter_sequence(x, group)
    expected = pad(sum(partial), (0, 0, 0, own * size - length)).unflatten(1, (size, own))
    same(y, expected[:, rank])
    # Each rank has the gradient of its own tokens.
    mine = pad(weights[0], (0, 0, 0, own * size - length)).unflatten(1, (size, own))[:, rank]
    same(backward(x, y, mine), weights[0])
    return True


def check_all_lengths():
    return [check_all(length) for length in (1, 2, 6, 7)]


@pytest.mark.parametrize("size", [2, 3])
def test_values_and_gradients_are_those_of_one_process(workers, size):
    assert workers.run(check_all_lengths, size) == [[True] * 4] * size


def test_one_rank_changes_nothing():
    group = Mesh(torch.device("cpu")).group("tp")
    x = random(0, 4)
    assert copy_to(x, group) is x
    assert sum_over(x, group) is x
    assert gather_sequence(x, group, 4) is x
    assert scatter_sequence(x, group) is x
