"""Additive masks: the values, and that all layers of a pass share one."""

import torch

from kava.cache.masks import additive


def test_zero_where_seen_and_the_lowest_value_where_not() -> None:
    made = additive(torch.tensor([[True, False], [False, True]]), torch.float32, -9.0)
    assert made.dtype == torch.float32
    assert made.tolist() == [[0.0, -9.0], [-9.0, 0.0]]


def test_the_same_mask_gives_the_same_tensor_and_each_dtype_its_own() -> None:
    mask = torch.tensor([True, False])
    first = additive(mask, torch.float32, -9.0)
    assert additive(mask, torch.float32, -9.0) is first
    assert additive(mask, torch.bfloat16, -9.0).dtype == torch.bfloat16
    assert additive(mask, torch.float32, -5.0).tolist() == [0.0, -5.0]
    assert additive(mask.clone(), torch.float32, -9.0) is not first
