"""Linear layers that read the same input, computed together."""

import pytest
import torch
from torch import nn

from kava.model.linear_groups import LinearGroup
from kava.runtime import cpu_matmul


def test_all_maps_of_a_group_are_computed_together_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of grouped queries the keys' map is narrower: whatever the rows, nothing waits for it afterwards."""
    wide, narrow = nn.Linear(8, 8), nn.Linear(8, 2)
    group = LinearGroup([wide, narrow])
    for rows in range(1, 20):
        monkeypatch.setattr(cpu_matmul, "MIN_MULTIPLICATIONS", 400)
        x = torch.randn(rows, 8)
        torch.testing.assert_close(group.call(0, x), wide(x))
        torch.testing.assert_close(group.call(1, x), narrow(x))
        assert group._input is None
