"""The distances of both distillation losses, element by element."""

from typing import get_args

import pytest
import torch

from kava.config import LossConfig
from kava.losses import DISTANCES
from oracles import naive


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_equals_naive(name: str) -> None:
    residual = torch.tensor([-2.5, -1.0, -0.4, 0.0, 0.99, 1.0, 1.01, 30.0], dtype=torch.float64)
    expected = [naive.distance(name, r) for r in residual.tolist()]
    torch.testing.assert_close(DISTANCES[name](residual), torch.tensor(expected, dtype=torch.float64))


def test_distances_by_hand() -> None:
    residual = torch.tensor([0.5, -3.0])
    values = {name: distance(residual).tolist() for name, distance in DISTANCES.items()}
    assert values == {"smooth_l1": [0.125, 2.5], "l1": [0.5, 3.0], "mse": [0.25, 9.0]}


def test_settings_offer_these_distances() -> None:
    fields = LossConfig.model_fields
    assert set(get_args(fields["kv_loss_type"].annotation)) == set(DISTANCES)
    assert set(get_args(fields["codi_loss_type"].annotation)) <= set(DISTANCES)
