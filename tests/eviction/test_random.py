"""Entries drawn by a hash: uniform, and a function of everything that names an entry."""

from dataclasses import replace

import pytest
import torch

from helpers.traces import make_trace
from kava.eviction import SCORERS, Options

OPTIONS = Options(num_slots=4, lam=0.3, seed=9)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_random_is_uniform_and_depends_on_every_part() -> None:
    trace = make_trace([500] * 20, length=500, layers=4, heads=4)
    scores = SCORERS["random"](trace, OPTIONS)
    quantiles = scores.flatten().sort().values[:: scores.numel() // 10][:10]
    torch.testing.assert_close(quantiles, torch.arange(10) / 10, atol=0.01, rtol=0)
    for dim in range(4):  # layer, example, head, position: neighbours are uncorrelated
        first, second = scores.narrow(dim, 0, scores.shape[dim] - 1), scores.narrow(dim, 1, scores.shape[dim] - 1)
        assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.01
    other = SCORERS["random"](trace, Options(4, seed=10))
    assert abs(torch.corrcoef(torch.stack([scores.flatten(), other.flatten()]))[0, 1]) < 0.01


def test_random_uses_both_halves_of_the_example_seed() -> None:
    trace = make_trace([30, 30, 30], length=30)
    trace = replace(trace, example_seed=torch.tensor([5, 5 + 2**32, -5]))
    a, b, c = SCORERS["random"](trace, OPTIONS).unbind(1)
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(b, c)
