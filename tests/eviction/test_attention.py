"""Importance as a share of what the answer attends to."""

from dataclasses import replace

import pytest
import torch

from helpers.traces import make_trace
from kava.eviction.attention import normalised_importance


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_head_without_attention_gets_uniform_importance() -> None:
    trace = make_trace([4], length=6)
    importance = normalised_importance(replace(trace, importance=torch.zeros_like(trace.importance)))
    assert importance[1, 0, 2].tolist() == [0.25, 0.25, 0.25, 0.25, 0, 0]


def test_importance_sums_to_one_and_is_zero_at_padding() -> None:
    trace = make_trace([9, 1, 6], length=12)
    importance = normalised_importance(trace)
    torch.testing.assert_close(importance.sum(-1), torch.ones(2, 3, 3))
    assert not importance[:, ~trace.mask.unsqueeze(1).expand(-1, 3, -1)].any()
