"""Sums whose value does not depend on the padding behind them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kava.eviction.ordered_sum import ordered_sum


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 70), zeros=st.integers(0, 70))
def test_ordered_sum_is_a_sum_and_ignores_trailing_zeros(size: int, zeros: int) -> None:
    x = torch.randn(3, size, 2)
    padded = torch.cat([x, torch.zeros(3, zeros, 2)], dim=1)
    torch.testing.assert_close(ordered_sum(x, 1), x.sum(1), atol=1e-5, rtol=1e-5)
    assert torch.equal(ordered_sum(x, 1), ordered_sum(padded, 1))
