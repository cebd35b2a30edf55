"""Grouped queries as more queries of one head: what attention over repeated keys and values gives."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from kava.cache.grouped_attention import attend_grouped, is_grouped


def test_it_gives_what_repeated_keys_and_values_give() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    for tensor in (query, key, value):
        tensor.requires_grad_()
    mask = torch.rand(2, 1, 5, 9) > 0.3
    mask[..., 0] = True
    assert is_grouped(query, key, mask, {})
    repeated = [tensor.repeat_interleave(3, dim=1) for tensor in (key, value)]
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3).transpose(1, 2)
    found = attend_grouped(query, key, value, mask, 0.3)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    inputs = (query, key, value)
    for ours, theirs in zip(
        torch.autograd.grad((found * upstream).sum(), inputs), torch.autograd.grad((expected * upstream).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_it_cannot_take_is_left_to_transformers() -> None:
    query, key, mask = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 3, 8), torch.ones(1, 1, 2, 3, dtype=torch.bool)
    assert not is_grouped(query, query, mask, {})
    assert not is_grouped(query, key, None, {})
    assert not is_grouped(query, key, mask.float(), {})
    assert not is_grouped(query, key, mask, {"softcap": 3.0})
