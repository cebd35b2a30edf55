"""Redundancy of the keys of a trace."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.traces import make_trace
from kava.eviction import Trace
from kava.eviction.cosine import redundancy
from oracles import naive


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_redundancy_by_hand() -> None:
    """Keys a, a, -b with a orthogonal to b: the mean cosines are 1/3, 1/3, 0."""
    keys = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, -3.0]]).view(1, 1, 1, 3, 2)
    trace = Trace(keys, keys, torch.ones(1, 1, 1, 3), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    low = torch.exp(torch.tensor(-1 / 3))
    torch.testing.assert_close(redundancy(trace)[0, 0, 0], torch.stack([low, low, torch.tensor(1.0)]) / (2 * low + 1))


def test_zero_key_has_cosine_zero() -> None:
    trace = make_trace([5], length=5)
    trace.keys[:, :, :, 2] = 0
    expected = torch.tensor(naive.redundancy(trace.keys[0, 0, 0].tolist()))
    torch.testing.assert_close(redundancy(trace)[0, 0, 0], expected)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 10_000))
def test_redundancy_follows_a_permutation_of_the_trace(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    trace = make_trace([count], length=count)
    order = torch.randperm(count)
    moved = redundancy(replace(trace, keys=trace.keys[..., order, :]))
    torch.testing.assert_close(moved, redundancy(trace)[..., order])


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 20), scale=st.floats(1e-3, 1e3))
def test_redundancy_ignores_the_length_of_keys(count: int, scale: float) -> None:
    trace = make_trace([count], length=count)
    torch.testing.assert_close(redundancy(replace(trace, keys=trace.keys * scale)), redundancy(trace))


def test_redundancy_is_the_same_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = make_trace([9, 1, 6], length=12)
    together = redundancy(trace)
    monkeypatch.setattr(sys.modules[redundancy.__module__], "MOST_COPIED", 1)
    assert torch.equal(redundancy(trace), together)


def test_redundancy_sums_to_one_and_is_zero_at_padding() -> None:
    trace = make_trace([9, 1, 6], length=12)
    scores = redundancy(trace)
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 3, 3))
    assert not scores[:, ~trace.mask.unsqueeze(1).expand(-1, 3, -1)].any()
